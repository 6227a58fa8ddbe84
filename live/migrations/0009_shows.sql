-- Rooms and their shows, the cues of a show, what was on air when, and the show's kept log.

CREATE TABLE rooms (
    id          uuid PRIMARY KEY,
    slug        text NOT NULL UNIQUE,
    title       text NOT NULL,
    audience    jsonb NOT NULL DEFAULT '{}',
    host_name   text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE shows (
    id              text PRIMARY KEY,  -- ten characters, as in its public link
    room_id         uuid NOT NULL REFERENCES rooms,
    title           text NOT NULL,
    summary         text NOT NULL DEFAULT '',
    video_url       text NOT NULL DEFAULT '',
    video_kind      text NOT NULL DEFAULT 'hls' CHECK (video_kind IN ('hls', 'flv', 'mp4')),
    poster_url      text NOT NULL DEFAULT '',
    state           text NOT NULL DEFAULT 'scheduled'
                    CHECK (state IN ('scheduled', 'waiting', 'live', 'paused', 'ending', 'ended')),
    starts_at       timestamptz NOT NULL,
    started_at      timestamptz,
    ending_until    timestamptz,  -- end of the last call; null when there was none
    ended_at        timestamptz,
    guest_comments  boolean NOT NULL DEFAULT false,
    generation      integer NOT NULL DEFAULT 1,  -- raised each time its Redis keys are rebuilt
    report          jsonb,  -- the end card, once built
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX shows_by_room ON shows (room_id, starts_at DESC);
CREATE INDEX shows_by_start ON shows (starts_at DESC, id);

CREATE TABLE cues (
    id          uuid PRIMARY KEY,
    show_id     text NOT NULL REFERENCES shows ON DELETE CASCADE,
    position    integer NOT NULL,
    shortcut    char(1) NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('pin', 'flash', 'benefit', 'poll', 'announcement')),
    title       text NOT NULL,
    payload     jsonb NOT NULL DEFAULT '{}',
    state       text NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'running', 'done')),
    subject_id  text,  -- the offer, benefit or poll it opened
    UNIQUE (show_id, shortcut) DEFERRABLE INITIALLY DEFERRED,
    UNIQUE (show_id, position) DEFERRABLE INITIALLY DEFERRED
);

CREATE TABLE on_air (  -- which product was shown, from–to; open while to_at is null
    show_id     text NOT NULL REFERENCES shows ON DELETE CASCADE,
    product_id  uuid NOT NULL,
    from_at     timestamptz NOT NULL,
    to_at       timestamptz,
    PRIMARY KEY (show_id, product_id, from_at),
    CHECK (to_at IS NULL OR to_at >= from_at)
);

-- What was on air follows the offers, whoever opens or closes them.
CREATE FUNCTION follow_offer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO on_air (show_id, product_id, from_at, to_at)
    SELECT NEW.show_id, NEW.product_id, NEW.opened_at, NEW.closed_at
    WHERE EXISTS (SELECT 1 FROM shows WHERE id = NEW.show_id)
    ON CONFLICT (show_id, product_id, from_at) DO UPDATE SET to_at = excluded.to_at;
    RETURN NULL;
END
$$;
CREATE TRIGGER offers_on_air AFTER INSERT OR UPDATE OF closed_at ON offers
    FOR EACH ROW EXECUTE FUNCTION follow_offer();

CREATE TABLE show_log (  -- the numbered events, copied from Redis for the record
    show_id   text NOT NULL REFERENCES shows ON DELETE CASCADE,
    epoch     text NOT NULL,
    seq       bigint NOT NULL,
    at        timestamptz NOT NULL,
    audience  integer NOT NULL,
    event     jsonb NOT NULL,
    PRIMARY KEY (show_id, epoch, seq)
);
