-- What a transfer may use of the client's line, in bytes a second; none: as much as there is.
ALTER TABLE transfers ADD COLUMN rate_max BIGINT;
