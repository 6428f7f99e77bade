-- Where the client's own audit stood when it last said so, and when it last went back.
ALTER TABLE clients ADD COLUMN audit_head TEXT;
ALTER TABLE clients ADD COLUMN audit_back_ms INTEGER;
