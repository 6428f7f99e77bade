-- What an operator signed of a transfer, and the signature, for its client; none: nothing was signed.
ALTER TABLE transfers ADD COLUMN signed_request BLOB;
ALTER TABLE transfers ADD COLUMN signature BLOB;
