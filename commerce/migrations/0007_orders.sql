-- What is offered in a show, what was ordered, and the money that came.

CREATE TABLE offers (
    id            uuid PRIMARY KEY,
    show_id       text NOT NULL,
    product_id    uuid NOT NULL REFERENCES products (id),
    kind          text NOT NULL CHECK (kind IN ('pin', 'flash')),
    audience      jsonb NOT NULL DEFAULT '{}',
    audience_bit  integer NOT NULL CHECK (audience_bit BETWEEN 0 AND 8),
    flash_fen     bigint CHECK (flash_fen BETWEEN 1 AND 100000000),
    quota         integer CHECK (quota BETWEEN 1 AND 1000000),
    per_person    integer CHECK (per_person BETWEEN 1 AND 1000000),
    taken         integer NOT NULL DEFAULT 0 CHECK (taken >= 0),  -- held and sold: the last guard of the quota
    status        text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'closed')),
    opened_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    closes_at     timestamptz,
    closed_at     timestamptz,
    close_reason  text CHECK (close_reason IN ('staff', 'time', 'replaced', 'show')),
    announced_at        timestamptz,
    close_announced_at  timestamptz,
    CHECK (quota IS NULL OR taken <= quota),
    CHECK ((kind = 'flash') = (flash_fen IS NOT NULL)),
    CHECK ((status = 'closed') = (closed_at IS NOT NULL)),
    CHECK (closes_at > opened_at)
);
CREATE UNIQUE INDEX offers_one_of_a_kind ON offers (show_id, product_id, kind) WHERE status = 'open';
CREATE INDEX offers_of_show ON offers (show_id, id);
CREATE INDEX offers_by_close ON offers (closes_at) WHERE status = 'open';
CREATE INDEX offers_unannounced ON offers (show_id)
    WHERE announced_at IS NULL OR (status = 'closed' AND close_announced_at IS NULL);

-- Never deleted; cancelled, expired or refunded by a further state and a further row.
CREATE TABLE orders (
    id                    uuid PRIMARY KEY,
    kind                  text NOT NULL CHECK (kind IN ('goods', 'plan')),
    member_id             uuid NOT NULL REFERENCES members (id),
    show_id               text,
    state                 text NOT NULL DEFAULT 'placed'
                          CHECK (state IN ('placed', 'paid', 'cancelled', 'expired', 'refunded')),
    key                   text NOT NULL CHECK (char_length(key) BETWEEN 1 AND 64),
    body_digest           text NOT NULL,
    plan_id               uuid REFERENCES plans (id),
    shown_name            text NOT NULL DEFAULT '',   -- masked, for the ticker
    currency              text NOT NULL,
    goods_fen             bigint NOT NULL CHECK (goods_fen >= 0),
    freight_fen           bigint NOT NULL DEFAULT 0 CHECK (freight_fen >= 0),
    total_fen             bigint NOT NULL CHECK (total_fen >= 0),
    points_bonus_percent  integer NOT NULL DEFAULT 0, -- of the plan at the time of order
    address               jsonb,                      -- as it was when ordered
    placed_at             timestamptz NOT NULL DEFAULT clock_timestamp(),
    hold_until            timestamptz NOT NULL,       -- set once: looking, retrying and failing do not renew it
    paid_at               timestamptz,                -- our record of the payment, not the provider's clock
    closed_at             timestamptz,                -- cancelled, expired or refunded
    placed_announced_at   timestamptz,
    paid_announced_at     timestamptz,
    closed_announced_at   timestamptz,
    UNIQUE (member_id, key),
    CHECK (total_fen = goods_fen + freight_fen),
    CHECK ((kind = 'plan') = (plan_id IS NOT NULL)),
    CHECK ((kind = 'goods') = (address IS NOT NULL)),  -- {} when the member was erased
    CHECK (kind = 'plan' OR show_id IS NOT NULL),
    CHECK (state NOT IN ('paid', 'refunded') OR paid_at IS NOT NULL),
    CHECK ((state IN ('cancelled', 'expired', 'refunded')) = (closed_at IS NOT NULL))
);
CREATE INDEX orders_of_member ON orders (member_id, id);
CREATE INDEX orders_of_show ON orders (show_id, state) WHERE show_id IS NOT NULL;
CREATE INDEX orders_by_hold ON orders (hold_until) WHERE state = 'placed';
CREATE INDEX orders_unannounced ON orders (show_id, id)
    WHERE placed_announced_at IS NULL
       OR (paid_at IS NOT NULL AND paid_announced_at IS NULL)
       OR (closed_at IS NOT NULL AND closed_announced_at IS NULL);

-- Further keys that were answered by an order already open: a second tap on "join".
CREATE TABLE order_aliases (
    member_id    uuid NOT NULL REFERENCES members (id),
    key          text NOT NULL CHECK (char_length(key) BETWEEN 1 AND 64),
    body_digest  text NOT NULL,
    order_id     uuid NOT NULL REFERENCES orders (id),
    PRIMARY KEY (member_id, key)
);

CREATE TABLE order_lines (
    order_id        uuid NOT NULL REFERENCES orders (id),
    position        integer NOT NULL,
    kind            text NOT NULL CHECK (kind IN ('goods', 'gift')),
    offer_id        uuid REFERENCES offers (id),
    product_id      uuid REFERENCES products (id),
    name            text NOT NULL,                     -- as it was when ordered
    quantity        integer NOT NULL CHECK (quantity BETWEEN 1 AND 9999),
    unit_fen        bigint NOT NULL CHECK (unit_fen >= 0),
    line_fen        bigint NOT NULL,
    gift_value_fen  bigint NOT NULL DEFAULT 0,
    winner          text NOT NULL,                     -- which candidate gave the price
    candidates      jsonb NOT NULL DEFAULT '[]',
    piece           boolean NOT NULL DEFAULT false,    -- uses pieces of the offer
    PRIMARY KEY (order_id, position),
    CHECK (line_fen = unit_fen * quantity),
    CHECK (kind = 'goods' OR unit_fen = 0),
    CHECK (kind = 'gift' OR (offer_id IS NOT NULL AND product_id IS NOT NULL))
);
CREATE INDEX order_lines_by_product ON order_lines (product_id, order_id);
CREATE INDEX order_lines_by_offer ON order_lines (offer_id, order_id);

-- Payments begun at a provider, so that a lost webhook can be asked for. Written before the provider is
-- called: without a page, the call failed, is under way, or was cut off by a crash; the next start repeats it.
CREATE TABLE payment_starts (
    provider    text NOT NULL,
    order_id    uuid NOT NULL REFERENCES orders (id),
    amount_fen  bigint NOT NULL,
    ref         text,
    url         text,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (provider, order_id),
    UNIQUE (provider, ref),
    CHECK ((ref IS NULL) = (url IS NULL))
);
CREATE INDEX payment_starts_of_order ON payment_starts (order_id);

-- Money that came. Append-only: what is to go back is a further row.
CREATE TABLE payments (
    id           uuid PRIMARY KEY,
    provider     text NOT NULL,
    ref          text NOT NULL,
    order_id     uuid REFERENCES orders (id),
    said_order   text NOT NULL,                        -- what the provider named, ours or not
    amount_fen   bigint NOT NULL,
    payer        text NOT NULL,
    outcome      text NOT NULL CHECK (outcome IN ('accepted', 'returned', 'quarantined')),
    reason       text CHECK (reason IN ('unknown_order', 'wrong_amount', 'second_payment', 'cancelled_before', 'no_stock')),
    provider_paid_at  timestamptz NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (provider, ref),
    CHECK ((outcome = 'accepted') = (reason IS NULL)),
    CHECK (outcome = 'quarantined' OR (order_id IS NOT NULL AND amount_fen >= 0))
);
CREATE UNIQUE INDEX payments_one_accepted ON payments (order_id) WHERE outcome = 'accepted';
CREATE INDEX payments_of_order ON payments (order_id);
CREATE TRIGGER payments_append_only BEFORE UPDATE OR DELETE ON payments
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payments_no_truncate BEFORE TRUNCATE ON payments
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Money to be sent back, and the proof that it was.
CREATE TABLE payment_returns (
    id           uuid PRIMARY KEY,
    payment_id   uuid NOT NULL REFERENCES payments (id),
    amount_fen   bigint NOT NULL CHECK (amount_fen > 0),
    reason       text NOT NULL,
    marked_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (payment_id, reason)
);
CREATE TRIGGER payment_returns_append_only BEFORE UPDATE OR DELETE ON payment_returns
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_returns_no_truncate BEFORE TRUNCATE ON payment_returns
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE payment_returns_done (
    return_id     uuid PRIMARY KEY REFERENCES payment_returns (id),
    provider_ref  text NOT NULL,
    done_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TRIGGER payment_returns_done_append_only BEFORE UPDATE OR DELETE ON payment_returns_done
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What was bought may change only until it is paid, cancelled or expired, and never vanishes.
CREATE FUNCTION refuse_line_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR NOT EXISTS (SELECT 1 FROM orders WHERE id = OLD.order_id AND state = 'placed') THEN
        RAISE EXCEPTION 'the lines of an order that is no longer placed stay as they are'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER order_lines_kept BEFORE UPDATE OR DELETE ON order_lines
    FOR EACH ROW EXECUTE FUNCTION refuse_line_change();
CREATE TRIGGER orders_kept BEFORE DELETE ON orders
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
