-- Points that are spent, come back and run out; and campaigns that give more of them for a time.

-- Each entry has its lot's end: when it has passed, what is left of the lot counts no more. NULL: it never ends.
-- `part` tells apart several entries of one cause: the parts of an order that were refunded one after another.
-- `back_to`: the lot that was spent, where it had run out and its points came back as a lot of their own.
ALTER TABLE points_entries
    ADD COLUMN expires_at  timestamptz,
    ADD COLUMN part        text NOT NULL DEFAULT '' CHECK (char_length(part) <= 80),
    ADD COLUMN back_to     uuid REFERENCES points_entries (id),
    DROP CONSTRAINT points_entries_check,
    DROP CONSTRAINT points_entries_kind_check,
    DROP CONSTRAINT points_entries_reason_cause_key,
    ADD CONSTRAINT points_entries_kind_check CHECK (kind IN ('earn', 'reverse', 'spend', 'restore')),
    ADD CONSTRAINT points_entries_signs CHECK (
        kind = 'earn' AND amount > 0 AND lot_id = id
        OR kind IN ('reverse', 'spend') AND amount < 0 AND lot_id <> id
        OR kind = 'restore' AND amount > 0 AND (lot_id = id) = (back_to IS NOT NULL)),
    ADD CONSTRAINT points_entries_lasting CHECK (expires_at > active_from);

-- An earning is booked once; every other act once for each lot, cause and part.
CREATE UNIQUE INDEX points_earned_once ON points_entries (reason, cause) WHERE kind = 'earn';
CREATE UNIQUE INDEX points_moved_once ON points_entries (cause, kind, part, coalesce(back_to, lot_id))
    WHERE kind <> 'earn';
CREATE INDEX points_entries_by_lot ON points_entries (lot_id);

-- More points for goods ordered within a window. What an order was promised is kept with the order.
CREATE TABLE points_campaigns (
    id          uuid PRIMARY KEY,
    name        text NOT NULL UNIQUE CHECK (char_length(name) BETWEEN 1 AND 40),
    percent     integer NOT NULL CHECK (percent BETWEEN 1 AND 1000),  -- on the base: 100 doubles
    audience    jsonb NOT NULL DEFAULT '{}',
    products    uuid[] NOT NULL DEFAULT '{}',      -- empty: all goods
    from_at     timestamptz NOT NULL,
    until_at    timestamptz NOT NULL,
    adds        boolean NOT NULL DEFAULT true,     -- counts beside others; of those that do not, one counts
    priority    integer NOT NULL DEFAULT 0 CHECK (priority BETWEEN 0 AND 1000),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (until_at > from_at)
);
CREATE INDEX points_campaigns_by_end ON points_campaigns (until_at);
