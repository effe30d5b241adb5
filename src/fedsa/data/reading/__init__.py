"""Tables from files, folders and the hub. What all readers share: see `fedsa.data.reading.base`."""
