-- The records. Portable SQL but for one line (AUTOINCREMENT): ids and names are TEXT, moments
-- BIGINT milliseconds since 1970 UTC, states and reasons the words that operators see.

-- One row, always there.
CREATE TABLE meta (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    -- The greatest seq of an event that was dropped.
    pruned_through BIGINT NOT NULL,
    -- Written by the readiness check, to prove that writing works.
    pinged_ms BIGINT NOT NULL
);
INSERT INTO meta (id, pruned_through, pinged_ms) VALUES (1, 0, 0);

CREATE TABLE clients (
    id TEXT NOT NULL PRIMARY KEY,
    session_epoch BIGINT NOT NULL,
    instance TEXT NOT NULL,
    jobs_max BIGINT NOT NULL,
    version TEXT NOT NULL,
    host_name TEXT NOT NULL,
    os TEXT NOT NULL,
    address TEXT NOT NULL,
    -- A JSON array of strings.
    allowed_roots TEXT NOT NULL,
    first_seen_ms BIGINT NOT NULL,
    last_seen_ms BIGINT NOT NULL
);

CREATE TABLE transfers (
    -- UUIDv7: sorts by age.
    id TEXT NOT NULL PRIMARY KEY,
    client_id TEXT NOT NULL REFERENCES clients (id),
    -- Who asked; empty while there is one operator.
    operator TEXT NOT NULL,
    request_id TEXT,
    -- What was asked for; none asks for the client's default file.
    path TEXT,
    consistency TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    deadline_ms BIGINT NOT NULL,
    deadline_wait_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    state TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    instance TEXT,
    waiting_reason TEXT,
    waiting_since_ms BIGINT,
    waiting_until_ms BIGINT,
    -- When it may be claimed; none while it may not.
    due_ms BIGINT,
    failure_reason TEXT,
    failure_last_reason TEXT,
    failure_detail TEXT,
    attempts BIGINT NOT NULL,
    attempts_barren BIGINT NOT NULL,
    source_changes BIGINT NOT NULL,
    mismatches BIGINT NOT NULL,
    received_bytes BIGINT NOT NULL,
    started_ms BIGINT,
    ended_ms BIGINT
);
-- A request id stands for one transfer, for as long as its record.
CREATE UNIQUE INDEX transfers_request ON transfers (operator, request_id)
    WHERE request_id IS NOT NULL;
-- The queue of a client, in the order of claims.
CREATE INDEX transfers_due ON transfers (client_id, due_ms, id) WHERE due_ms IS NOT NULL;
-- What counts against a client, and against `jobs_max`.
CREATE INDEX transfers_unfinished ON transfers (client_id, state) WHERE ended_ms IS NULL;
CREATE INDEX transfers_deadline ON transfers (deadline_ms) WHERE ended_ms IS NULL;
-- Lists, newest first; counts; stale offers.
CREATE INDEX transfers_client ON transfers (client_id, id);
CREATE INDEX transfers_state ON transfers (state, id);

-- The files of a transfer; one for now.
CREATE TABLE files (
    transfer_id TEXT NOT NULL REFERENCES transfers (id),
    file_index BIGINT NOT NULL,
    -- What the client says it opened.
    path TEXT,
    size_bytes BIGINT,
    -- A JSON object.
    fingerprint TEXT,
    digest TEXT,
    delivered TEXT,
    content TEXT NOT NULL,
    PRIMARY KEY (transfer_id, file_index)
);
CREATE INDEX files_kept ON files (transfer_id) WHERE content = 'KEPT';

-- Every try at a transfer.
CREATE TABLE attempts (
    transfer_id TEXT NOT NULL REFERENCES transfers (id),
    epoch BIGINT NOT NULL,
    instance TEXT NOT NULL,
    session_epoch BIGINT NOT NULL,
    offered_ms BIGINT NOT NULL,
    started_ms BIGINT,
    ended_ms BIGINT,
    -- COMPLETE, or what ended it.
    outcome TEXT,
    received_bytes BIGINT NOT NULL,
    PRIMARY KEY (transfer_id, epoch)
);

-- Every change of a transfer, with the whole of it after the change, as JSON.
CREATE TABLE events (
    -- AUTOINCREMENT: the number of a dropped event is not used again.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    transfer_id TEXT NOT NULL REFERENCES transfers (id),
    revision BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    is_final BOOLEAN NOT NULL,
    snapshot TEXT NOT NULL,
    UNIQUE (transfer_id, revision)
);
CREATE INDEX events_at ON events (at_ms);
