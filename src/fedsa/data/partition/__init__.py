"""Who has which rows: rows are dealt to clients, then each client's rows are split into train, validation and test."""

from fedsa.data.partition.clients import ClientRows, Partition, label_counts, label_totals
from fedsa.data.partition.dealing import client_column, client_ids
from fedsa.data.partition.partition import partition_columns, partition_rows
from fedsa.data.partition.saved import data_fingerprint, load_partition, save_partition

__all__ = [
    "ClientRows",
    "Partition",
    "client_column",
    "client_ids",
    "data_fingerprint",
    "label_counts",
    "label_totals",
    "load_partition",
    "partition_columns",
    "partition_rows",
    "save_partition",
]
