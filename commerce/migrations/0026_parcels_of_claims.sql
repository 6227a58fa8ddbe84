-- A parcel may bring a gift that was won by a claim: then it belongs to no order.

ALTER TABLE parcels
    ALTER COLUMN order_id DROP NOT NULL,
    ADD COLUMN claim_id uuid UNIQUE REFERENCES benefit_claims (id),
    ADD CONSTRAINT parcels_of_an_order_or_a_claim CHECK (
        (order_id IS NULL) = (claim_id IS NOT NULL)
        AND (claim_id IS NULL OR (case_id IS NULL AND gift_claim_id IS NULL)));
