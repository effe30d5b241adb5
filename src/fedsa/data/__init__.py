"""Rows and who has them.

`reading` makes tables of files, `packaged` of data sets that are fetched. `sources` picks the one that a recipe names.
`checking` and `quality` look at the rows. `partition` deals them to clients. `rows` does all of this in order.
"""
