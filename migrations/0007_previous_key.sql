-- The SHA-256 of the public key of the certificate that the latest one was renewed with: NULL before
-- the first renewal.
ALTER TABLE identities ADD COLUMN previous_key_hash TEXT;
