-- Gifts that a plan gives every month, every year or on the birthday, and what members took of them.

ALTER TABLE members ADD COLUMN birthday text CHECK (birthday ~ '^[0-9]{2}-[0-9]{2}$');  -- MM-DD, set once

-- Written with the plan and never changed: who bought the plan keeps its gifts.
CREATE TABLE plan_gifts (
    id             uuid PRIMARY KEY,
    plan_id        uuid NOT NULL REFERENCES plans (id),
    position       integer NOT NULL CHECK (position BETWEEN 1 AND 12),
    title          text NOT NULL CHECK (char_length(title) BETWEEN 1 AND 60),
    value_fen      bigint NOT NULL CHECK (value_fen BETWEEN 0 AND 10000000),
    every          text NOT NULL CHECK (every IN ('month', 'year', 'birthday')),
    needs_address  boolean NOT NULL,
    UNIQUE (plan_id, position)
);

-- One row for each gift that was taken. That periods of one member never overlap is checked under the
-- member's own row.
CREATE TABLE gift_claims (
    id            uuid PRIMARY KEY,
    gift_id       uuid NOT NULL REFERENCES plan_gifts (id),
    member_id     uuid NOT NULL REFERENCES members (id),
    term_id       uuid NOT NULL REFERENCES plan_terms (id),
    period_from   timestamptz NOT NULL,
    period_until  timestamptz NOT NULL,
    address       jsonb,               -- a copy of its own
    claimed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (term_id, gift_id, period_from),
    CHECK (period_until > period_from)
);
CREATE INDEX gift_claims_of_member ON gift_claims (member_id, gift_id);
