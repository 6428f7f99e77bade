-- The id in the marker of the directory of files that these records tell of; none before the first
-- start that knows of markers.
ALTER TABLE meta ADD COLUMN landing_id TEXT;
