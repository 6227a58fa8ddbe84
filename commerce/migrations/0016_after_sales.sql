-- After the order: what sending costs and where to, what was sent, what a buyer asks for, what went back.

-- By the beginning of a region's name; the longest that fits counts, '' is for the rest.
CREATE TABLE freight_rows (
    region         text PRIMARY KEY CHECK (char_length(region) <= 30),
    flat_fen       bigint NOT NULL CHECK (flat_fen BETWEEN 0 AND 1000000),
    free_from_fen  bigint CHECK (free_from_fen >= 0),
    days_min       integer CHECK (days_min BETWEEN 0 AND 60),
    days_max       integer CHECK (days_max BETWEEN days_min AND 60),
    covered        boolean NOT NULL DEFAULT true,
    CHECK ((days_min IS NULL) = (days_max IS NULL))
);

ALTER TABLE orders
    DROP CONSTRAINT orders_state_check,
    ADD CONSTRAINT orders_state_check
        CHECK (state IN ('placed', 'paid', 'fulfilled', 'cancelled', 'expired', 'refunded')),
    ADD CONSTRAINT orders_fulfilled_were_paid CHECK (state <> 'fulfilled' OR paid_at IS NOT NULL),
    ADD COLUMN fulfilled_at    timestamptz,  -- the first parcel was sent
    ADD COLUMN promised_from   date,         -- as it was quoted
    ADD COLUMN promised_until  date,
    ADD CONSTRAINT orders_promise CHECK ((promised_from IS NULL) = (promised_until IS NULL));
CREATE INDEX orders_to_send ON orders (priority DESC, paid_at) WHERE state = 'paid';

-- The moves of an order: the same table as `MOVES` in order_book.py, as the last guard.
CREATE TABLE order_moves (
    was  text NOT NULL,
    now  text NOT NULL,
    PRIMARY KEY (was, now)
);
INSERT INTO order_moves (was, now) VALUES
    ('placed', 'paid'), ('placed', 'cancelled'), ('placed', 'expired'),
    ('expired', 'paid'),                                   -- late money, where the goods are still there
    ('paid', 'fulfilled'), ('paid', 'refunded'),
    ('fulfilled', 'refunded');
CREATE FUNCTION refuse_order_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM order_moves WHERE was = OLD.state AND now = NEW.state) THEN
        RAISE EXCEPTION 'an order does not go from % to %', OLD.state, NEW.state
            USING ERRCODE = 'check_violation', CONSTRAINT = 'orders_move';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER orders_move BEFORE UPDATE OF state ON orders
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION refuse_order_move();

-- What went back of an order, for each line and cause; position 0 is the freight. A sum of money without a
-- quantity is given for a complaint, the goods stay with the buyer.
CREATE TABLE order_refunds (
    id           uuid PRIMARY KEY,
    order_id     uuid NOT NULL REFERENCES orders (id),
    position     integer NOT NULL CHECK (position >= 0),
    quantity     integer NOT NULL CHECK (quantity >= 0),
    money_fen    bigint NOT NULL CHECK (money_fen >= 0),
    points       bigint NOT NULL DEFAULT 0 CHECK (points >= 0),
    earned       bigint NOT NULL DEFAULT 0 CHECK (earned >= 0),  -- points taken back
    restocked    boolean NOT NULL DEFAULT false,
    cause        text NOT NULL CHECK (char_length(cause) BETWEEN 1 AND 100),
    refunded_by  text NOT NULL,
    refunded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (order_id, cause, position)
);
CREATE TRIGGER order_refunds_append_only BEFORE UPDATE OR DELETE ON order_refunds
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER order_refunds_no_truncate BEFORE TRUNCATE ON order_refunds
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The last guard: no piece goes back twice. The order's row is locked, so that two refunds see each other.
CREATE FUNCTION refuse_refund_twice() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    bought bigint;
    back bigint;
BEGIN
    PERFORM 1 FROM orders WHERE id = NEW.order_id FOR UPDATE;
    IF NEW.position > 0 THEN
        SELECT quantity INTO bought FROM order_lines
            WHERE order_id = NEW.order_id AND position = NEW.position AND kind = 'goods';
        SELECT coalesce(sum(quantity), 0) INTO back FROM order_refunds
            WHERE order_id = NEW.order_id AND position = NEW.position;
        IF bought IS NULL OR back + NEW.quantity > bought THEN
            RAISE EXCEPTION 'line %: of % pieces % went back already', NEW.position, bought, back
                USING ERRCODE = 'check_violation', CONSTRAINT = 'order_refunds_within_line';
        END IF;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER order_refunds_within_line BEFORE INSERT ON order_refunds
    FOR EACH ROW EXECUTE FUNCTION refuse_refund_twice();

-- A buyer asks for something after the sale; staff settle it.
CREATE TABLE after_sales_cases (
    id          uuid PRIMARY KEY,
    order_id    uuid NOT NULL REFERENCES orders (id),
    member_id   uuid NOT NULL REFERENCES members (id),
    kind        text NOT NULL CHECK (kind IN ('refund', 'return', 'exchange', 'missing', 'damaged')),
    reason      text NOT NULL CHECK (char_length(reason) <= 500),  -- '' when the member was erased
    state       text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'settled', 'declined', 'withdrawn')),
    opened_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at   timestamptz,
    act         text CHECK (act IN ('refund', 'decline', 'resend')),
    amount_fen  bigint CHECK (amount_fen >= 0),            -- money that went back
    points      bigint CHECK (points >= 0),                -- points that went back
    note        text CHECK (char_length(note) BETWEEN 1 AND 500),  -- what staff said of it
    decided_by  text,
    CHECK ((state = 'open') = (closed_at IS NULL)),
    CHECK ((state IN ('settled', 'declined')) = (act IS NOT NULL)),
    CHECK ((act IS NULL) = (decided_by IS NULL))
);
CREATE INDEX after_sales_of_member ON after_sales_cases (member_id, id);
CREATE INDEX after_sales_of_order ON after_sales_cases (order_id, id);
CREATE INDEX after_sales_open ON after_sales_cases (id) WHERE state = 'open';

CREATE TABLE after_sales_lines (
    case_id   uuid NOT NULL REFERENCES after_sales_cases (id),
    order_id  uuid NOT NULL,
    position  integer NOT NULL,
    quantity  integer NOT NULL CHECK (quantity >= 1),
    is_open   boolean NOT NULL DEFAULT true,
    PRIMARY KEY (case_id, position),
    FOREIGN KEY (order_id, position) REFERENCES order_lines (order_id, position)
);
CREATE UNIQUE INDEX after_sales_one_open_for_a_line ON after_sales_lines (order_id, position) WHERE is_open;

CREATE TABLE after_sales_photos (
    id        uuid PRIMARY KEY,
    case_id   uuid NOT NULL REFERENCES after_sales_cases (id),
    media     text NOT NULL CHECK (media IN ('image/jpeg', 'image/png', 'image/webp')),
    image     bytea NOT NULL CHECK (octet_length(image) BETWEEN 1 AND 524288),
    digest    bytea NOT NULL,                              -- the same picture twice is kept once
    added_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (case_id, digest)
);

-- What was sent, and what of it came back. A parcel of a plan's order is the gift of joining.
CREATE TABLE parcels (
    id           uuid PRIMARY KEY,
    order_id     uuid NOT NULL REFERENCES orders (id),
    case_id      uuid UNIQUE REFERENCES after_sales_cases (id),  -- sent once more
    carrier      text NOT NULL CHECK (char_length(carrier) BETWEEN 1 AND 40),
    tracking     text NOT NULL CHECK (char_length(tracking) BETWEEN 1 AND 60),
    sent_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    sent_by      text NOT NULL,
    returned_at  timestamptz,
    UNIQUE (order_id, carrier, tracking)
);

-- A plan given back: how the sum was made up.
CREATE TABLE plan_refunds (
    payment_id    uuid PRIMARY KEY REFERENCES payments (id),
    order_id      uuid NOT NULL UNIQUE REFERENCES orders (id),
    way           text NOT NULL CHECK (way IN ('whole', 'itemised', 'pro_rata')),
    fee_fen       bigint NOT NULL CHECK (fee_fen >= 0),
    price_fen     bigint NOT NULL CHECK (price_fen >= 0),   -- saved by member prices
    freight_fen   bigint NOT NULL CHECK (freight_fen >= 0), -- saved by free freight
    gifts_fen     bigint NOT NULL CHECK (gifts_fen >= 0),   -- stated value of gifts not returned
    time_fen      bigint NOT NULL CHECK (time_fen >= 0),    -- pro rata: the part of the fee for the time used
    payable_fen   bigint NOT NULL CHECK (payable_fen >= 0),
    refunded_by   text NOT NULL,
    refunded_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (payable_fen = greatest(0, fee_fen - price_fen - freight_fen - gifts_fen - time_fen))
);
CREATE TRIGGER plan_refunds_append_only BEFORE UPDATE OR DELETE ON plan_refunds
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
