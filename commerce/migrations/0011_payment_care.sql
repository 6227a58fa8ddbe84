-- Care for payments: when a silent one is asked for again, what the provider said of a return, what a person decided.

-- `ask_at`: not before then is the provider asked (again). `page_until`: some providers' addresses hold for minutes.
-- `way`: how the page was made, so that it is made in the same way again.
ALTER TABLE payment_starts
    ADD COLUMN asked       integer NOT NULL DEFAULT 0,
    ADD COLUMN ask_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    ADD COLUMN page_until  timestamptz,
    ADD COLUMN way         text NOT NULL DEFAULT '';
CREATE INDEX payment_starts_to_ask ON payment_starts (provider, ask_at);

-- Returns that did not go at once: what the provider said, and when it is asked again.
CREATE TABLE payment_return_tries (
    return_id  uuid PRIMARY KEY REFERENCES payment_returns (id),
    tries      integer NOT NULL CHECK (tries >= 1),
    refused    boolean NOT NULL,          -- declined, not merely late: a person is to look
    said       text NOT NULL,
    next_at    timestamptz NOT NULL
);

-- What a person decided about money that bought nothing, or that the provider would not send back.
CREATE TABLE payment_decisions (
    payment_id  uuid NOT NULL REFERENCES payments (id),
    act         text NOT NULL CHECK (act IN ('return', 'keep', 'by_hand')),
    note        text NOT NULL CHECK (char_length(note) BETWEEN 1 AND 200),
    decided_by  text NOT NULL,
    decided_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (payment_id, act)
);
CREATE TRIGGER payment_decisions_append_only BEFORE UPDATE OR DELETE ON payment_decisions
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_decisions_no_truncate BEFORE TRUNCATE ON payment_decisions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The last guard: never more goes back than came. The payment's row is locked, so that two returns see each other.
CREATE FUNCTION refuse_too_much_back() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    came bigint;
    back numeric;
BEGIN
    SELECT amount_fen INTO came FROM payments WHERE id = NEW.payment_id FOR UPDATE;
    -- A repeat of a reason adds nothing: the unique key turns it away.
    SELECT coalesce(sum(amount_fen), 0) INTO back FROM payment_returns
        WHERE payment_id = NEW.payment_id AND reason <> NEW.reason;
    IF back + NEW.amount_fen > came THEN
        RAISE EXCEPTION 'of % fen, % are to go back already: not another %', came, back, NEW.amount_fen
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_returns_within_payment';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER payment_returns_within_payment BEFORE INSERT ON payment_returns
    FOR EACH ROW EXECUTE FUNCTION refuse_too_much_back();
