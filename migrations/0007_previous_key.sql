-- Which certificates of an identity may be renewed, besides the latest: the SHA-256 of the public key
-- of the one that it was renewed with, and of the one that came of an answer that was lost.
ALTER TABLE identities ADD COLUMN previous_key_hash TEXT;
ALTER TABLE identities ADD COLUMN displaced_key_hash TEXT;
-- When the latest begins to hold: one that begins later is of records that were lost since.
ALTER TABLE identities ADD COLUMN begins_ms BIGINT NOT NULL DEFAULT 0;
