-- Returns of money that have not gone yet: the job looks at these alone, however many went before.
CREATE TABLE payment_returns_open (
    return_id  uuid PRIMARY KEY REFERENCES payment_returns (id)
);
INSERT INTO payment_returns_open (return_id)
    SELECT r.id FROM payment_returns r
    WHERE NOT EXISTS (SELECT 1 FROM payment_returns_done d WHERE d.return_id = r.id);

CREATE FUNCTION open_return() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO payment_returns_open (return_id) VALUES (NEW.id);
    RETURN NULL;
END
$$;
CREATE TRIGGER payment_returns_opened AFTER INSERT ON payment_returns
    FOR EACH ROW EXECUTE FUNCTION open_return();

CREATE FUNCTION close_return() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM payment_returns_open WHERE return_id = NEW.return_id;
    RETURN NULL;
END
$$;
CREATE TRIGGER payment_returns_closed AFTER INSERT ON payment_returns_done
    FOR EACH ROW EXECUTE FUNCTION close_return();
