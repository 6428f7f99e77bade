-- Who is who: what machines join with, who they are, and who may ask for their files. Of a secret
-- only its SHA-256 is here, in hexadecimal digits.

CREATE TABLE join_tokens (
    id TEXT NOT NULL PRIMARY KEY,
    hash TEXT NOT NULL,
    -- The client ids that it is good for.
    pattern TEXT NOT NULL,
    uses_max BIGINT NOT NULL,
    uses BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    revoked_ms BIGINT,
    needs_approval BOOLEAN NOT NULL,
    -- It may replace an identity.
    replaces BOOLEAN NOT NULL,
    creator TEXT NOT NULL
);

-- No reference to `clients`: those are known from their first session on.
CREATE TABLE identities (
    client_id TEXT NOT NULL PRIMARY KEY,
    -- A UUID; certificates name it.
    uid TEXT NOT NULL,
    standing TEXT NOT NULL,
    standing_since_ms BIGINT NOT NULL,
    joined_ms BIGINT NOT NULL,
    token_id TEXT NOT NULL,
    -- The SHA-256 of the public key of its latest certificate, and when that expires.
    key_hash TEXT NOT NULL,
    expires_ms BIGINT NOT NULL,
    host_name TEXT NOT NULL
);

CREATE TABLE operators (
    name TEXT NOT NULL PRIMARY KEY,
    role TEXT NOT NULL,
    -- A JSON object.
    scope TEXT NOT NULL,
    -- A token is one operator's.
    token_id TEXT NOT NULL UNIQUE,
    hash TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    -- None: never.
    expires_ms BIGINT,
    revoked_ms BIGINT
);
