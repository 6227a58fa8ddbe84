-- What the first N get: the benefits of a show, who joined in it, the seats and the claims.

CREATE TABLE benefits (
    id            uuid PRIMARY KEY,
    show_id       text NOT NULL,
    title         text NOT NULL CHECK (char_length(title) BETWEEN 1 AND 60),
    body          text NOT NULL DEFAULT '' CHECK (char_length(body) <= 400),
    what          text NOT NULL CHECK (what IN ('gift', 'coupon', 'points', 'early_access')),
    value_fen     bigint NOT NULL CHECK (value_fen BETWEEN 0 AND 100000000),
    quota         integer NOT NULL CHECK (quota BETWEEN 1 AND 100000),
    per_person    integer NOT NULL DEFAULT 1 CHECK (per_person BETWEEN 1 AND 100),
    needs         text NOT NULL CHECK (needs IN ('nothing', 'join')),
    audience      jsonb NOT NULL DEFAULT '{}',
    seat_s        integer NOT NULL DEFAULT 300 CHECK (seat_s BETWEEN 1 AND 3600),
    status        text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'paused', 'closed')),
    pause_reason  text CHECK (char_length(pause_reason) BETWEEN 1 AND 200),
    opened_by     text NOT NULL,
    opened_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    closes_at     timestamptz,
    closed_at     timestamptz,
    -- Raised each time the counters in Redis are rebuilt: what was decided under an older one is not written.
    generation    integer NOT NULL DEFAULT 1,
    -- Raised with each change of terms; `event` is the last change as viewers are told it.
    version       integer NOT NULL DEFAULT 1,
    told_version  integer NOT NULL DEFAULT 0,
    event         jsonb NOT NULL,
    changed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (needs = 'nothing' OR per_person = 1),
    CHECK ((status = 'paused') = (pause_reason IS NOT NULL)),
    CHECK ((status = 'closed') = (closed_at IS NOT NULL)),
    CHECK (closes_at > opened_at)
);
CREATE INDEX benefits_of_show ON benefits (show_id, id);
CREATE UNIQUE INDEX benefits_one_for_joins ON benefits (show_id) WHERE needs = 'join' AND status <> 'closed';
CREATE INDEX benefits_by_close ON benefits (closes_at) WHERE status <> 'closed' AND closes_at IS NOT NULL;

-- First paid starts of a plan while the show ran. Written under the show's lock, so the ordinal is commit order.
CREATE TABLE show_joins (
    ordinal       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    show_id       text NOT NULL,
    member_id     uuid NOT NULL REFERENCES members (id),
    payment_id    uuid NOT NULL UNIQUE REFERENCES payments (id),
    recorded_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    refunded_at   timestamptz
);
CREATE INDEX show_joins_of_show ON show_joins (show_id, ordinal);

-- Payments that brought the plan without the gift, in the show or after it: which benefit was missed and why.
CREATE TABLE benefit_misses (
    payment_id    uuid PRIMARY KEY REFERENCES payments (id),
    benefit_id    uuid NOT NULL REFERENCES benefits (id),
    why           text NOT NULL CHECK (why IN ('sold_out', 'reserved_out', 'closed', 'already_claimed')),
    refund_until  timestamptz,                         -- a full refund by one tap until then
    recorded_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE benefit_claims (
    id            uuid PRIMARY KEY,
    benefit_id    uuid NOT NULL REFERENCES benefits (id),
    member_id     uuid NOT NULL REFERENCES members (id),
    nth           integer NOT NULL DEFAULT 1 CHECK (nth >= 1),
    rank          integer NOT NULL CHECK (rank >= 1),  -- never changed, never given again
    payment_id    uuid UNIQUE REFERENCES payments (id),
    key           text NOT NULL DEFAULT '',            -- of the command that claimed
    state         text NOT NULL DEFAULT 'confirmed' CHECK (state IN ('confirmed', 'recalled', 'deducted')),
    claimed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    settled_at    timestamptz,                         -- recalled or deducted; the rank keeps its gap
    announced_at  timestamptz,
    UNIQUE (benefit_id, rank),
    UNIQUE (benefit_id, member_id, nth),
    CHECK ((state = 'confirmed') = (settled_at IS NULL))
);
CREATE INDEX benefit_claims_of_member ON benefit_claims (member_id, id);
CREATE INDEX benefit_claims_unannounced ON benefit_claims (benefit_id) WHERE announced_at IS NULL;

-- The seats as Redis last told them, kept for the day its counters are lost. One row for each person and benefit.
CREATE TABLE benefit_seats (
    benefit_id  uuid NOT NULL REFERENCES benefits (id),
    member_id   uuid NOT NULL REFERENCES members (id),
    state       text NOT NULL CHECK (state IN ('queued', 'left', 'held', 'lapsed', 'released', 'confirmed')),
    until       timestamptz,                           -- of the hold
    place       bigint,                                -- in the queue
    version     bigint NOT NULL,                       -- the benefit's count of changes: a later one wins
    PRIMARY KEY (benefit_id, member_id),
    CHECK (state <> 'held' OR until IS NOT NULL),
    CHECK (state <> 'queued' OR place IS NOT NULL)
);
CREATE INDEX benefit_seats_of_member ON benefit_seats (member_id) WHERE state = 'held';

-- The last guard, whatever Redis said.
CREATE FUNCTION benefit_claim_guard() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    terms benefits%ROWTYPE;
BEGIN
    IF TG_OP = 'UPDATE' AND (NEW.rank, NEW.benefit_id, NEW.member_id, NEW.nth)
            IS DISTINCT FROM (OLD.rank, OLD.benefit_id, OLD.member_id, OLD.nth) THEN
        RAISE EXCEPTION 'a rank never changes' USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT * INTO terms FROM benefits WHERE id = NEW.benefit_id;
    IF NEW.rank > terms.quota THEN
        RAISE EXCEPTION 'rank % is over the quota of %', NEW.rank, terms.quota
            USING ERRCODE = 'check_violation', CONSTRAINT = 'benefit_claims_rank_within_quota';
    END IF;
    IF NEW.nth > terms.per_person THEN
        RAISE EXCEPTION 'claim % is over % a person', NEW.nth, terms.per_person
            USING ERRCODE = 'check_violation', CONSTRAINT = 'benefit_claims_nth_within_per_person';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER benefit_claims_guard BEFORE INSERT OR UPDATE ON benefit_claims
    FOR EACH ROW EXECUTE FUNCTION benefit_claim_guard();
CREATE TRIGGER benefit_claims_kept BEFORE DELETE ON benefit_claims
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Terms change only in the viewer's favour.
CREATE FUNCTION benefit_terms_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.quota < OLD.quota THEN
        RAISE EXCEPTION 'a quota never falls' USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.status = 'closed' AND NEW.status <> 'closed' THEN
        RAISE EXCEPTION 'a closed benefit stays closed' USING ERRCODE = 'restrict_violation';
    END IF;
    IF (NEW.show_id, NEW.what, NEW.value_fen, NEW.per_person, NEW.needs, NEW.audience)
            IS DISTINCT FROM (OLD.show_id, OLD.what, OLD.value_fen, OLD.per_person, OLD.needs, OLD.audience) THEN
        RAISE EXCEPTION 'the terms of a benefit are fixed when it opens' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER benefits_terms_guard BEFORE UPDATE ON benefits
    FOR EACH ROW EXECUTE FUNCTION benefit_terms_guard();
