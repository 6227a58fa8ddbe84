-- The points ledger: signed entries, balance by sum, nothing ever changed. Corrections are further entries.

CREATE TABLE points_entries (
    id           uuid PRIMARY KEY,
    member_id    uuid NOT NULL REFERENCES members (id),
    lot_id       uuid NOT NULL REFERENCES points_entries (id),  -- an earning's own id; a reversal names the earning
    kind         text NOT NULL CHECK (kind IN ('earn', 'reverse')),
    amount       bigint NOT NULL,
    reason       text NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 60),
    cause        text NOT NULL CHECK (char_length(cause) BETWEEN 1 AND 120),
    active_from  timestamptz NOT NULL,     -- pending before; a reversal has its lot's
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (kind = 'earn' AND amount > 0 AND lot_id = id OR kind = 'reverse' AND amount < 0 AND lot_id <> id),
    UNIQUE (reason, cause)
);
CREATE INDEX points_entries_of_member ON points_entries (member_id, id);
CREATE INDEX points_entries_by_cause ON points_entries (cause);

CREATE TRIGGER points_append_only BEFORE UPDATE OR DELETE ON points_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER points_no_truncate BEFORE TRUNCATE ON points_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
