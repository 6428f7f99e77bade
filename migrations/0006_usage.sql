-- What is used on whose account: an attempt names its client and who asked, as its transfer does.
ALTER TABLE attempts ADD COLUMN client_id TEXT NOT NULL DEFAULT '';
ALTER TABLE attempts ADD COLUMN operator TEXT NOT NULL DEFAULT '';
UPDATE attempts SET
    client_id = (SELECT t.client_id FROM transfers t WHERE t.id = attempts.transfer_id),
    operator = (SELECT t.operator FROM transfers t WHERE t.id = attempts.transfer_id);
CREATE INDEX attempts_client ON attempts (client_id, offered_ms);
CREATE INDEX attempts_operator ON attempts (operator, offered_ms);
CREATE INDEX transfers_client_created ON transfers (client_id, created_ms);
CREATE INDEX transfers_operator_created ON transfers (operator, created_ms);
