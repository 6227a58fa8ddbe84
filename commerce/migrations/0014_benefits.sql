-- What a benefit brings besides a gift, whom it is for besides an audience, when it starts; what each claim brought.

ALTER TABLE benefits
    DROP CONSTRAINT benefits_what_check,
    DROP CONSTRAINT benefits_needs_check,
    DROP CONSTRAINT benefits_check,
    ADD COLUMN coupon_rule     uuid,                            -- what = coupon
    ADD COLUMN points          integer NOT NULL DEFAULT 0 CHECK (points BETWEEN 0 AND 1000000),
    ADD COLUMN products        uuid[] NOT NULL DEFAULT '{}',    -- what = early_access: these may be ordered …
    ADD COLUMN until_at        timestamptz,                     -- … before they are on sale; until then at most
    ADD COLUMN cap_fen         bigint NOT NULL DEFAULT 0 CHECK (cap_fen BETWEEN 0 AND 5000000),
    ADD COLUMN min_fen         bigint NOT NULL DEFAULT 0 CHECK (min_fen BETWEEN 0 AND 100000000),
    ADD COLUMN newly_joined_s  integer NOT NULL DEFAULT 0 CHECK (newly_joined_s BETWEEN 0 AND 31622400),
    ADD COLUMN watched_s       integer NOT NULL DEFAULT 0 CHECK (watched_s BETWEEN 0 AND 86400),
    ADD COLUMN first_order     boolean NOT NULL DEFAULT false,
    ADD COLUMN renewals        boolean NOT NULL DEFAULT false,  -- of a plan count as joining, too
    ADD COLUMN starts_at       timestamptz,                     -- no claim before; null: since it was opened
    ADD CONSTRAINT benefits_what_check
        CHECK (what IN ('gift', 'coupon', 'points', 'early_access', 'free_order')),
    ADD CONSTRAINT benefits_needs_check CHECK (needs IN ('nothing', 'join', 'order')),
    ADD CONSTRAINT benefits_joined_once CHECK (needs <> 'join' OR per_person = 1),
    ADD CONSTRAINT benefits_joins_have_no_countdown CHECK (needs <> 'join' OR starts_at IS NULL),
    ADD CONSTRAINT benefits_bring CHECK (
        (coupon_rule IS NULL OR what = 'coupon')
        AND (points = 0 OR what = 'points')
        AND (products = '{}' OR what = 'early_access')
        AND (until_at IS NULL OR what = 'early_access')
        AND (cap_fen > 0) = (what = 'free_order')
        AND (what <> 'free_order' OR needs = 'order')),
    ADD CONSTRAINT benefits_renewals_join CHECK (needs = 'join' OR NOT renewals),
    ADD CONSTRAINT benefits_min_of_order CHECK (needs = 'order' OR min_fen = 0),
    ADD CONSTRAINT benefits_close_after_start CHECK (closes_at > starts_at);

-- What earned the claim, so that it goes when that goes: a paid order, or the payment of a newly joined plan.
ALTER TABLE benefit_claims
    ADD COLUMN order_id   uuid REFERENCES orders (id),
    ADD COLUMN joined_by  uuid REFERENCES payments (id);
CREATE UNIQUE INDEX benefit_claims_once_an_order ON benefit_claims (benefit_id, order_id) WHERE order_id IS NOT NULL;
CREATE INDEX benefit_claims_by_order ON benefit_claims (order_id) WHERE order_id IS NOT NULL;
CREATE INDEX benefit_claims_by_joining ON benefit_claims (joined_by) WHERE joined_by IS NOT NULL;

-- A renewal is kept beside the first starts: it counts where a benefit says so.
ALTER TABLE show_joins ADD COLUMN renewal boolean NOT NULL DEFAULT false;

-- What a claim brought, written with it. `undone_at`: taken back when the claim was recalled.
CREATE TABLE benefit_grants (
    claim_id    uuid PRIMARY KEY REFERENCES benefit_claims (id),
    member_id   uuid NOT NULL REFERENCES members (id),
    what        text NOT NULL CHECK (what IN ('coupon', 'points', 'early_access', 'free_order')),
    points      integer NOT NULL DEFAULT 0,
    coupon_id   uuid,
    order_id    uuid REFERENCES orders (id),
    amount_fen  bigint NOT NULL DEFAULT 0 CHECK (amount_fen >= 0),  -- of a free order, sent back
    products    uuid[] NOT NULL DEFAULT '{}',
    until_at    timestamptz,
    given_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    undone_at   timestamptz
);
CREATE INDEX benefit_grants_early ON benefit_grants (member_id) WHERE what = 'early_access' AND undone_at IS NULL;

CREATE FUNCTION benefit_grant_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.undone_at IS NOT NULL OR NEW.undone_at IS NULL
            OR to_jsonb(NEW) - 'undone_at' IS DISTINCT FROM to_jsonb(OLD) - 'undone_at' THEN
        RAISE EXCEPTION 'what a claim brought stays; it is undone once' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER benefit_grants_kept BEFORE UPDATE ON benefit_grants
    FOR EACH ROW EXECUTE FUNCTION benefit_grant_guard();
CREATE TRIGGER benefit_grants_never_deleted BEFORE DELETE ON benefit_grants
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Terms change only in the viewer's favour: more of it, for longer, from earlier on.
CREATE OR REPLACE FUNCTION benefit_terms_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.quota < OLD.quota THEN
        RAISE EXCEPTION 'a quota never falls' USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.status = 'closed' AND NEW.status <> 'closed' THEN
        RAISE EXCEPTION 'a closed benefit stays closed' USING ERRCODE = 'restrict_violation';
    END IF;
    IF coalesce(NEW.starts_at, '-infinity') > coalesce(OLD.starts_at, '-infinity')
            OR coalesce(NEW.closes_at, 'infinity') < coalesce(OLD.closes_at, 'infinity') THEN
        RAISE EXCEPTION 'a window never gets shorter' USING ERRCODE = 'restrict_violation';
    END IF;
    IF (NEW.show_id, NEW.title, NEW.body, NEW.what, NEW.value_fen, NEW.per_person, NEW.needs, NEW.audience,
            NEW.seat_s, NEW.coupon_rule, NEW.points, NEW.products, NEW.until_at, NEW.cap_fen, NEW.min_fen,
            NEW.newly_joined_s, NEW.watched_s, NEW.first_order, NEW.renewals)
            IS DISTINCT FROM
            (OLD.show_id, OLD.title, OLD.body, OLD.what, OLD.value_fen, OLD.per_person, OLD.needs, OLD.audience,
            OLD.seat_s, OLD.coupon_rule, OLD.points, OLD.products, OLD.until_at, OLD.cap_fen, OLD.min_fen,
            OLD.newly_joined_s, OLD.watched_s, OLD.first_order, OLD.renewals) THEN
        RAISE EXCEPTION 'the terms of a benefit are fixed when it opens' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$;
