-- Receipts: one link for each claim, each naming the digest of the one before it in its benefit.

CREATE TABLE benefit_receipts (
    claim_id    uuid PRIMARY KEY REFERENCES benefit_claims (id),
    benefit_id  uuid NOT NULL REFERENCES benefits (id),
    link        integer NOT NULL CHECK (link >= 1),  -- its place in the chain: the order in which claims committed
    core        text NOT NULL,                       -- what is signed, byte for byte
    digest      text NOT NULL CHECK (digest ~ '^[0-9a-f]{64}$'),  -- SHA-256 of the core
    UNIQUE (benefit_id, link)
);
CREATE TRIGGER benefit_receipts_append_only BEFORE UPDATE OR DELETE ON benefit_receipts
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER benefit_receipts_no_truncate BEFORE TRUNCATE ON benefit_receipts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
