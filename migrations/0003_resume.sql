-- What is durably held of attempts that broke, in bytes.
ALTER TABLE transfers ADD COLUMN kept_bytes BIGINT NOT NULL DEFAULT 0;
-- Why an attempt last began from zero although bytes were kept.
ALTER TABLE transfers ADD COLUMN restart_detail TEXT;
-- Of the first bytes so many were not read again before the rest was sent.
ALTER TABLE files ADD COLUMN trusted_bytes BIGINT NOT NULL DEFAULT 0;
