-- Paid membership: the plans on sale, and one row for each started period or trial.

CREATE TABLE plans (
    id                    uuid PRIMARY KEY,
    name                  text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 40),
    fee_fen               bigint NOT NULL CHECK (fee_fen > 0),
    period_months         integer NOT NULL CHECK (period_months BETWEEN 1 AND 120),
    trial_days            integer NOT NULL DEFAULT 7 CHECK (trial_days BETWEEN 0 AND 60),  -- 0: no trial
    percent               integer CHECK (percent BETWEEN 1 AND 99),  -- of the list price; null: member prices only
    points_bonus_percent  integer NOT NULL DEFAULT 20 CHECK (points_bonus_percent BETWEEN 0 AND 1000),
    free_freight          boolean NOT NULL DEFAULT true,
    gift_text             text NOT NULL DEFAULT '' CHECK (char_length(gift_text) <= 200),
    gift_value_fen        bigint NOT NULL DEFAULT 0 CHECK (gift_value_fen >= 0),
    on_sale               boolean NOT NULL DEFAULT true,
    created_at            timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE plan_terms (
    id                uuid PRIMARY KEY,
    member_id         uuid NOT NULL REFERENCES members (id),
    plan_id           uuid NOT NULL REFERENCES plans (id),
    kind              text NOT NULL CHECK (kind IN ('trial', 'paid')),
    starts_at         timestamptz NOT NULL,
    ends_at           timestamptz NOT NULL,
    -- a chain of renewals counts its months from one anchor, so that the 31st stays the 31st
    anchor_at         timestamptz NOT NULL,
    anchor_months     integer NOT NULL,
    payment_id        uuid UNIQUE,         -- the same payment never extends twice
    first_paid_start  boolean NOT NULL,    -- guest, registered, trial or lapsed -> paid; never a renewal
    source_show       text,
    created_at        timestamptz NOT NULL DEFAULT now(),
    ended_at          timestamptz,         -- cut short: converted, refunded
    end_reason        text CHECK (end_reason IN ('converted', 'refunded', 'erased')),
    CHECK (ends_at > starts_at),
    CHECK ((kind = 'paid') = (payment_id IS NOT NULL)),
    CHECK ((ended_at IS NULL) = (end_reason IS NULL))
);
CREATE INDEX plan_terms_of_member ON plan_terms (member_id, ends_at);
CREATE INDEX plan_terms_of_show ON plan_terms (source_show) WHERE source_show IS NOT NULL;
CREATE INDEX plan_terms_by_end ON plan_terms (ends_at);

-- One trial a person over all plans. Keyed digests, so that a phone stays used after its member was erased.
CREATE TABLE trial_marks (
    kind     text NOT NULL CHECK (kind IN ('member', 'phone', 'openid', 'payer')),
    mark     bytea NOT NULL,
    term_id  uuid NOT NULL REFERENCES plan_terms (id),
    at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, mark)
);
