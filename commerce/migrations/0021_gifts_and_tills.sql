-- A parcel may bring a gift of a period; a coupon may be used at a till.

ALTER TABLE parcels ADD COLUMN gift_claim_id uuid UNIQUE REFERENCES gift_claims (id);

ALTER TABLE coupons
    ADD COLUMN till_reference text CHECK (char_length(till_reference) BETWEEN 1 AND 80),
    DROP CONSTRAINT coupons_check,
    ADD CONSTRAINT coupons_had_by_one CHECK (
        (state IN ('held', 'used')) = (order_id IS NOT NULL OR till_reference IS NOT NULL)
        AND (till_reference IS NULL OR (state = 'used' AND order_id IS NULL)));

-- Every use at a till. What was undone stays, so that a late repeat of the call does not use the coupon again.
CREATE TABLE coupon_till_uses (
    coupon_id   uuid NOT NULL REFERENCES coupons (id),
    reference   text NOT NULL CHECK (char_length(reference) BETWEEN 1 AND 80),
    amount_fen  bigint CHECK (amount_fen BETWEEN 0 AND 100000000),  -- what it took off there
    used_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    used_by     text NOT NULL,
    undone_at   timestamptz,
    PRIMARY KEY (coupon_id, reference)
);
CREATE UNIQUE INDEX coupon_till_uses_standing ON coupon_till_uses (coupon_id) WHERE undone_at IS NULL;
