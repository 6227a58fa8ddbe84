-- Grace: how many days of 24 h a plan goes on after a renewal that failed; and the one grace of a paid term.

ALTER TABLE plans ADD COLUMN grace_days integer NOT NULL DEFAULT 0 CHECK (grace_days BETWEEN 0 AND 30);

-- `after_term`: the last paid term, at whose end the grace begins. `failed_order`: the renewal that was not paid.
ALTER TABLE plan_terms
    ADD COLUMN after_term    uuid UNIQUE REFERENCES plan_terms (id),
    ADD COLUMN failed_order  uuid,
    DROP CONSTRAINT plan_terms_kind_check,
    DROP CONSTRAINT plan_terms_end_reason_check,
    ADD CONSTRAINT plan_terms_kind_check CHECK (kind IN ('trial', 'paid', 'grace')),
    ADD CONSTRAINT plan_terms_end_reason_check
        CHECK (end_reason IN ('converted', 'refunded', 'erased', 'renewed', 'cancelled')),
    ADD CONSTRAINT plan_terms_grace
        CHECK ((kind = 'grace') = (after_term IS NOT NULL) AND (kind = 'grace') = (failed_order IS NOT NULL));
