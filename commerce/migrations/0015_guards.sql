-- What keeps the money of a show within bounds: budgets, a second person's word, cost prices, the incident switch.

-- What one piece costs the shop. Unknown when null: then nothing can be said of a margin.
ALTER TABLE products ADD COLUMN cost_fen bigint CHECK (cost_fen BETWEEN 0 AND 100000000);

-- A limit set by hand; without a row the default of the settings holds.
CREATE TABLE budgets (
    scope      text NOT NULL CHECK (scope IN ('benefit', 'show', 'month')),
    subject    text NOT NULL,                -- a benefit's id, a show's id, or a month as 2026-11
    limit_fen  bigint NOT NULL CHECK (limit_fen >= 0),
    set_by     text NOT NULL,
    set_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (scope, subject)
);

-- What one piece of a benefit may cost, and the month it counts in. Written when it opens.
CREATE TABLE benefit_costs (
    benefit_id  uuid PRIMARY KEY REFERENCES benefits (id),
    piece_fen   bigint NOT NULL CHECK (piece_fen >= 0),
    month       text NOT NULL
);
CREATE INDEX benefit_costs_of_month ON benefit_costs (month);
INSERT INTO benefit_costs (benefit_id, piece_fen, month)
SELECT id, value_fen, to_char(opened_at AT TIME ZONE 'UTC', 'YYYY-MM') FROM benefits;

-- What each benefit binds and has cost. Recalled or deducted claims cost nothing, and their rank is not given again.
-- What is closed binds what was given, and the seats whose holders still pay.
CREATE VIEW benefit_spending AS
    SELECT b.id AS benefit, b.show_id, b.title, c.month, costs.piece_fen, given.spent_fen,
        CASE WHEN b.status <> 'closed' THEN (b.quota - taken.back) * costs.piece_fen
             ELSE given.spent_fen + taken.held * costs.piece_fen END AS committed_fen
    FROM benefits b
    LEFT JOIN benefit_costs c ON c.benefit_id = b.id
    CROSS JOIN LATERAL (SELECT coalesce(c.piece_fen, b.value_fen) AS piece_fen) costs
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE k.state = 'confirmed') AS confirmed,
            count(*) FILTER (WHERE k.state <> 'confirmed') AS back,
            (SELECT count(*) FROM benefit_seats s
             WHERE s.benefit_id = b.id AND s.state = 'held' AND s.until > clock_timestamp()) AS held
        FROM benefit_claims k WHERE k.benefit_id = b.id
    ) taken
    CROSS JOIN LATERAL (
        SELECT CASE WHEN b.what <> 'free_order' THEN taken.confirmed * costs.piece_fen
            ELSE (SELECT coalesce(sum(g.amount_fen), 0)::bigint
                  FROM benefit_grants g JOIN benefit_claims k ON k.id = g.claim_id
                  WHERE k.benefit_id = b.id AND g.undone_at IS NULL) END AS spent_fen
    ) given;

-- One asks, another grants, and it is used once. `digest` binds it to one act with all its terms.
CREATE TABLE approvals (
    id            uuid PRIMARY KEY,
    digest        text NOT NULL,
    act           text NOT NULL,
    subject       text NOT NULL,
    show_id       text,
    title         text NOT NULL,
    rules         jsonb NOT NULL,
    asked_by      text NOT NULL,
    asked_name    text NOT NULL,
    asked_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at    timestamptz NOT NULL,
    state         text NOT NULL DEFAULT 'asked' CHECK (state IN ('asked', 'granted', 'declined', 'used')),
    decided_by    text,
    decided_name  text,
    decided_at    timestamptz,
    used_at       timestamptz,
    note          text NOT NULL DEFAULT '' CHECK (char_length(note) <= 200),
    CHECK (decided_by <> asked_by),
    CHECK ((state = 'asked') = (decided_by IS NULL)),
    CHECK ((decided_by IS NULL) = (decided_at IS NULL)),
    CHECK ((state = 'used') = (used_at IS NOT NULL)),
    CHECK (expires_at > asked_at)
);
CREATE INDEX approvals_by_digest ON approvals (digest, asked_by) WHERE state IN ('asked', 'granted');

-- The switch for money. At most one is on; the row is the truth, and each show's keys follow it.
CREATE TABLE incidents (
    id          uuid PRIMARY KEY,
    ordinal     bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    reason      text NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 200),
    extend_s    integer NOT NULL CHECK (extend_s BETWEEN 0 AND 900),
    extended    integer NOT NULL DEFAULT 0,  -- orders whose hold it prolonged
    began_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    began_by    text NOT NULL,
    began_name  text NOT NULL,
    ended_at    timestamptz,
    ended_by    text,
    ended_name  text,
    CHECK ((ended_at IS NULL) = (ended_by IS NULL)),
    CHECK (ended_at >= began_at)
);
CREATE UNIQUE INDEX incidents_one_at_a_time ON incidents ((true)) WHERE ended_at IS NULL;

-- Set by the incident that prolonged the hold: no hold is prolonged twice.
ALTER TABLE orders ADD COLUMN extended_by uuid REFERENCES incidents (id);

-- Payments that were not told of by the provider's news but found by asking.
CREATE TABLE payments_found (
    payment_id  uuid PRIMARY KEY REFERENCES payments (id),
    found_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX payments_found_by_time ON payments_found (found_at);
CREATE INDEX payments_by_record ON payments (recorded_at);

-- What one piece costs: of a bundle without a cost of its own, what its parts cost; null where one is not known.
CREATE FUNCTION piece_cost(p products) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN p.cost_fen IS NOT NULL OR NOT p.bundle THEN p.cost_fen
        ELSE (
            SELECT CASE WHEN bool_and(part.cost_fen IS NOT NULL) THEN sum(part.cost_fen * b.quantity)::bigint END
            FROM bundle_parts b JOIN products part ON part.id = b.part_id WHERE b.bundle_id = p.id)
    END
$$;
