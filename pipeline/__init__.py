"""The batch pipeline between a corpus of image shards and a folder of Parquet answers."""
