-- Who is here: members and how we may recognise them, where to send their parcels, who works here.

CREATE TABLE members (
    id           uuid PRIMARY KEY,
    nickname     text,
    external_id  text UNIQUE,              -- the shop server's own id
    source_show  text,                     -- the show in which the person registered
    agreed_at    timestamptz,              -- to the privacy notice; null for members fed in by the shop server
    notice       text,                     -- which edition of the notice
    created_at   timestamptz NOT NULL DEFAULT now(),
    erased_at    timestamptz,
    CHECK (nickname IS NULL OR char_length(nickname) BETWEEN 1 AND 20),
    CHECK (external_id IS NULL OR char_length(external_id) BETWEEN 1 AND 128)
);

-- A phone can change hands, so it is a dated identifier and never a key of anything.
CREATE TABLE identifiers (
    id          uuid PRIMARY KEY,
    member_id   uuid NOT NULL REFERENCES members (id),
    kind        text NOT NULL CHECK (kind IN ('phone')),
    value       text,                      -- E.164; null after its member was erased
    started_at  timestamptz NOT NULL DEFAULT now(),
    seen_at     timestamptz NOT NULL DEFAULT now(),  -- last proven by a code
    ended_at    timestamptz,
    CHECK (ended_at IS NOT NULL OR value IS NOT NULL),
    CHECK (ended_at IS NULL OR ended_at >= started_at)
);
CREATE UNIQUE INDEX identifiers_one_holder ON identifiers (kind, value) WHERE ended_at IS NULL;
CREATE UNIQUE INDEX identifiers_one_phone ON identifiers (member_id, kind) WHERE ended_at IS NULL;
CREATE INDEX identifiers_of_member ON identifiers (member_id);

CREATE TABLE addresses (
    id          uuid PRIMARY KEY,
    member_id   uuid NOT NULL REFERENCES members (id),
    name        text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 40),
    phone       text NOT NULL,
    region      text NOT NULL CHECK (char_length(region) BETWEEN 1 AND 60),
    detail      text NOT NULL CHECK (char_length(detail) BETWEEN 1 AND 120),
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX addresses_of_member ON addresses (member_id, id);

CREATE TABLE staff (
    id           uuid PRIMARY KEY,
    name         text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 40),
    role         text NOT NULL CHECK (role IN ('owner', 'host', 'assistant', 'reviewer', 'operator', 'admin')),
    room_id      uuid,                     -- bound to one room, or null
    created_at   timestamptz NOT NULL DEFAULT now(),
    disabled_at  timestamptz
);

CREATE TABLE staff_links (
    token_digest  bytea PRIMARY KEY,       -- SHA-256 of 256 random bits; the link itself is kept nowhere
    staff_id      uuid NOT NULL REFERENCES staff (id),
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz NOT NULL,
    used_at       timestamptz
);

CREATE TABLE api_keys (
    id             uuid PRIMARY KEY,
    name           text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 60),
    secret_digest  bytea NOT NULL UNIQUE,  -- SHA-256 of 256 random bits
    permissions    text[] NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    revoked_at     timestamptz
);

CREATE TABLE audit_log (
    id          uuid PRIMARY KEY,          -- UUIDv7: the order of the log
    at          timestamptz NOT NULL DEFAULT now(),
    actor_kind  text NOT NULL,
    actor_id    text NOT NULL,
    actor_name  text NOT NULL,
    act         text NOT NULL,             -- noun.verb
    subject     text NOT NULL,             -- kind:id
    detail      jsonb NOT NULL DEFAULT '{}'
);

-- Books that are only added to: corrections are further rows.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_log_no_truncate BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
