-- What was done, and what was learnt from it.

CREATE TABLE behaviour_records (
    id         uuid PRIMARY KEY,           -- made by the writer: the same record twice is one row
    show_id    text NOT NULL,
    kind       text NOT NULL,
    viewer     text,                       -- member or guest id; null after the member was erased
    member_id  uuid,                       -- null: a guest, or erased
    subject    text NOT NULL,
    value      bigint NOT NULL DEFAULT 0,  -- watch: milliseconds
    at         timestamptz NOT NULL,       -- watch: its start
    text       text
);
CREATE INDEX behaviour_of_show ON behaviour_records (show_id, kind);
CREATE INDEX behaviour_of_member ON behaviour_records (member_id, at) WHERE member_id IS NOT NULL;

-- How far each stream has been copied; moved in the same transaction as the rows.
CREATE TABLE log_positions (
    stream   text PRIMARY KEY,
    last_id  text NOT NULL
);

CREATE TABLE tags (
    id          uuid PRIMARY KEY,
    member_id   uuid NOT NULL REFERENCES members (id),
    subject     text NOT NULL,             -- product:<id>
    name        text NOT NULL,
    score       double precision NOT NULL, -- at as_of, six decimals
    strength    text NOT NULL CHECK (strength IN ('strong', 'weak')),
    rule        text NOT NULL,             -- which rule said so, with its edition
    events      integer NOT NULL CHECK (events > 0),
    as_of       timestamptz NOT NULL,      -- the end of the show it was last drawn from
    expires_at  timestamptz NOT NULL,      -- when the score will have faded below 0.6 theta
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (member_id, subject)
);

CREATE TABLE tag_evidence (
    tag_id     uuid NOT NULL REFERENCES tags (id) ON DELETE CASCADE,
    record_id  uuid NOT NULL,              -- records are never deleted; a foreign key would double the cost
    event      integer NOT NULL,           -- records of one evidence event share its number
    weight     double precision NOT NULL,  -- of the event, before it fades
    PRIMARY KEY (tag_id, record_id)
);
CREATE INDEX tag_evidence_by_record ON tag_evidence (record_id);

-- What a member has struck out: nothing done before that moment counts for it again.
CREATE TABLE tag_deletions (
    member_id   uuid NOT NULL REFERENCES members (id),
    subject     text NOT NULL,
    deleted_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (member_id, subject, deleted_at)
);
