-- Stock in depth: how a product gives its pieces, bundles, limits, and two books of where every piece went.

-- `on_order`: taken when the order is placed. `on_payment`: looked at then, taken when the money is recorded.
-- `presale`: pieces that are still to come, up to a cap; the stock at hand is not touched.
ALTER TABLE products DROP CONSTRAINT products_stock_mode_check;
ALTER TABLE products
    ADD COLUMN bundle             boolean NOT NULL DEFAULT false,  -- sold as its parts; has no stock of its own
    ADD COLUMN presale_cap        integer CHECK (presale_cap BETWEEN 1 AND 10000000),
    ADD COLUMN presale_taken      integer NOT NULL DEFAULT 0,
    ADD COLUMN ship_by            date,
    ADD COLUMN max_per_member     integer CHECK (max_per_member BETWEEN 1 AND 9999),
    ADD COLUMN max_per_household  integer CHECK (max_per_household BETWEEN 1 AND 9999),
    ADD COLUMN limit_days         integer NOT NULL DEFAULT 30 CHECK (limit_days BETWEEN 1 AND 3650),
    ADD CONSTRAINT products_stock_mode_check CHECK (stock_mode IN ('on_order', 'on_payment', 'presale')),
    ADD CONSTRAINT products_presale_within_cap CHECK (presale_taken BETWEEN 0 AND coalesce(presale_cap, 0)),
    ADD CONSTRAINT products_presale_is_stated
        CHECK (stock_mode <> 'presale' OR (presale_cap IS NOT NULL AND ship_by IS NOT NULL)),
    ADD CONSTRAINT products_bundle_is_its_parts
        CHECK (NOT bundle OR (stock = 0 AND stock_mode = 'on_order' AND presale_cap IS NULL));

-- What a bundle is made of. Set once with the bundle: another composition is another product.
CREATE TABLE bundle_parts (
    bundle_id  uuid NOT NULL REFERENCES products (id),
    part_id    uuid NOT NULL REFERENCES products (id),
    quantity   integer NOT NULL CHECK (quantity BETWEEN 1 AND 99),
    PRIMARY KEY (bundle_id, part_id),
    CHECK (bundle_id <> part_id)
);
CREATE INDEX bundle_parts_by_part ON bundle_parts (part_id);
CREATE TRIGGER bundle_parts_kept BEFORE UPDATE OR DELETE ON bundle_parts
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What may be had of a product now. Of a bundle it follows from its parts and is never stored.
CREATE FUNCTION free_pieces(p products) RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN p.bundle THEN coalesce((
            SELECT min(part.stock / b.quantity) FROM bundle_parts b JOIN products part ON part.id = b.part_id
            WHERE b.bundle_id = p.id), 0)
        WHEN p.stock_mode = 'presale' THEN p.presale_cap - p.presale_taken
        ELSE p.stock
    END
$$;

-- What each order takes, of which product and from where, as it was decided when the order was placed: so that
-- exactly that comes back, whatever became of the product since. Bundles stand here as their parts.
CREATE TABLE order_pieces (
    order_id    uuid NOT NULL REFERENCES orders (id),
    product_id  uuid NOT NULL REFERENCES products (id),
    source      text NOT NULL CHECK (source IN ('stock', 'presale')),
    quantity    integer NOT NULL CHECK (quantity BETWEEN 1 AND 1000000),
    state       text NOT NULL CHECK (state IN ('due', 'taken', 'back')),  -- due: taken with the payment
    returned    integer NOT NULL DEFAULT 0,                               -- sold, and put back since
    PRIMARY KEY (order_id, product_id, source),
    CHECK (returned BETWEEN 0 AND quantity),
    CHECK (returned = 0 OR state = 'taken')
);
CREATE INDEX order_pieces_by_product ON order_pieces (product_id, order_id);
CREATE TRIGGER order_pieces_kept BEFORE DELETE ON order_pieces
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Sold pieces that came back into the stock, by what caused it: each cause once.
CREATE TABLE stock_returns (
    cause       text NOT NULL CHECK (char_length(cause) BETWEEN 1 AND 200),
    order_id    uuid NOT NULL,
    product_id  uuid NOT NULL,
    source      text NOT NULL,
    quantity    integer NOT NULL CHECK (quantity >= 1),
    returned_by text NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (cause, order_id, product_id, source),
    FOREIGN KEY (order_id, product_id, source) REFERENCES order_pieces (order_id, product_id, source)
);
CREATE TRIGGER stock_returns_append_only BEFORE UPDATE OR DELETE ON stock_returns
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER stock_returns_no_truncate BEFORE TRUNCATE ON stock_returns
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Pieces that came in or were counted away, never by an order. Append-only:
-- products.stock = sum of these − what orders have taken and not returned.
CREATE TABLE stock_entries (
    id          uuid PRIMARY KEY,
    product_id  uuid NOT NULL REFERENCES products (id),
    delta       integer NOT NULL CHECK (delta <> 0),
    kind        text NOT NULL CHECK (kind IN ('opening', 'change', 'import')),
    reason      text NOT NULL CHECK (char_length(reason) <= 80),
    cause       text NOT NULL UNIQUE CHECK (char_length(cause) BETWEEN 1 AND 160),
    stock_after integer NOT NULL,
    entered_by  text NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX stock_entries_of_product ON stock_entries (product_id, id);
CREATE TRIGGER stock_entries_append_only BEFORE UPDATE OR DELETE ON stock_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER stock_entries_no_truncate BEFORE TRUNCATE ON stock_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Imports as they were answered: the same key is answered the same.
CREATE TABLE stock_imports (
    entered_by  text NOT NULL,
    key         text NOT NULL CHECK (char_length(key) BETWEEN 1 AND 64),
    body_digest text NOT NULL,
    outcome     jsonb NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (entered_by, key)
);
CREATE TRIGGER stock_imports_append_only BEFORE UPDATE OR DELETE ON stock_imports
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

ALTER TABLE orders
    ADD COLUMN household  text,                            -- digest of the address; gone when the member is
    ADD COLUMN priority   boolean NOT NULL DEFAULT false;  -- ordered in an early window: sent first
CREATE INDEX orders_of_household ON orders (household, id) WHERE household IS NOT NULL;
ALTER TABLE order_lines ADD COLUMN ship_by date;           -- of a pre-sale, as it was promised

ALTER TABLE payments DROP CONSTRAINT payments_reason_check;
ALTER TABLE payments ADD CONSTRAINT payments_reason_check CHECK (reason IN (
    'unknown_order', 'wrong_amount', 'second_payment', 'cancelled_before', 'no_stock', 'limit_reached'));

-- What was there before these books: orders took from the stock when they were placed.
INSERT INTO order_pieces (order_id, product_id, source, quantity, state)
SELECT l.order_id, l.product_id, 'stock', sum(l.quantity),
       CASE WHEN o.state IN ('cancelled', 'expired') THEN 'back' ELSE 'taken' END
FROM order_lines l JOIN orders o ON o.id = l.order_id
WHERE l.kind = 'goods' GROUP BY l.order_id, l.product_id, o.state;
INSERT INTO stock_entries (id, product_id, delta, kind, reason, cause, stock_after, entered_by)
SELECT gen_random_uuid(), p.id, p.stock + coalesce(w.pieces, 0), 'opening', '', 'product:' || p.id,
       p.stock + coalesce(w.pieces, 0), 'migration'
FROM products p LEFT JOIN (
    SELECT product_id, sum(quantity) AS pieces FROM order_pieces WHERE state = 'taken' GROUP BY product_id
) w ON w.product_id = p.id
WHERE p.stock + coalesce(w.pieces, 0) > 0;
