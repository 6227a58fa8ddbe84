-- Coupons with their rules, and what coupons and points took off an order, line by line.

CREATE TABLE coupon_rules (
    id             uuid PRIMARY KEY,
    title          text NOT NULL CHECK (char_length(title) BETWEEN 1 AND 60),
    kind           text NOT NULL CHECK (kind IN ('amount', 'percent', 'freight')),
    off_fen        bigint CHECK (off_fen BETWEEN 1 AND 100000000),
    percent        integer CHECK (percent BETWEEN 50 AND 99),  -- what is paid: 88 takes 12 % off
    max_off_fen    bigint CHECK (max_off_fen BETWEEN 1 AND 100000000),
    threshold_fen  bigint NOT NULL DEFAULT 0 CHECK (threshold_fen BETWEEN 0 AND 100000000),
    products       uuid[] NOT NULL DEFAULT '{}',               -- empty: all goods
    audience       jsonb NOT NULL DEFAULT '{}',
    from_at        timestamptz,
    until_at       timestamptz,
    days           integer CHECK (days BETWEEN 1 AND 3650),    -- after the grant
    stack_group    text NOT NULL CHECK (char_length(stack_group) BETWEEN 1 AND 40),
    stacks_with    text[] NOT NULL DEFAULT '{}',               -- two go together when each names the other's group
    per_person     integer CHECK (per_person BETWEEN 1 AND 1000),
    quota          integer CHECK (quota BETWEEN 1 AND 10000000),
    granted        integer NOT NULL DEFAULT 0 CHECK (granted >= 0),
    owner          text NOT NULL DEFAULT '' CHECK (char_length(owner) <= 60),  -- who bears the cost
    status         text NOT NULL DEFAULT 'on' CHECK (status IN ('on', 'off')),
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (quota IS NULL OR granted <= quota),
    CHECK ((kind = 'percent') = (percent IS NOT NULL)),
    CHECK (kind <> 'amount' OR off_fen IS NOT NULL),
    CHECK (kind = 'percent' OR max_off_fen IS NULL),
    CHECK (kind <> 'percent' OR off_fen IS NULL),
    CHECK (until_at > from_at)
);

-- One coupon of one member. `order_id` is the order that holds or used it.
CREATE TABLE coupons (
    id          uuid PRIMARY KEY,
    rule_id     uuid NOT NULL REFERENCES coupon_rules (id),
    member_id   uuid NOT NULL REFERENCES members (id),
    state       text NOT NULL DEFAULT 'free' CHECK (state IN ('free', 'held', 'used', 'void', 'expired')),
    cause       text NOT NULL CHECK (char_length(cause) BETWEEN 1 AND 120),
    nth         integer NOT NULL DEFAULT 1 CHECK (nth BETWEEN 1 AND 1000),
    order_id    uuid REFERENCES orders (id),
    void_after  boolean NOT NULL DEFAULT false,   -- its cause was taken back: void once no order has it
    granted_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz,
    changed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (rule_id, cause, nth),
    CHECK ((state IN ('held', 'used')) = (order_id IS NOT NULL))
);
CREATE INDEX coupons_of_member ON coupons (member_id, id);
CREATE INDEX coupons_by_cause ON coupons (cause);
CREATE INDEX coupons_of_order ON coupons (order_id) WHERE order_id IS NOT NULL;
CREATE INDEX coupons_by_end ON coupons (expires_at) WHERE state = 'free';

-- What each coupon gave an order; it stays when the coupon goes back to its owner.
CREATE TABLE order_coupons (
    order_id   uuid NOT NULL REFERENCES orders (id),
    coupon_id  uuid NOT NULL REFERENCES coupons (id),
    title      text NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('amount', 'percent', 'freight')),
    off_fen    bigint NOT NULL CHECK (off_fen >= 0),
    PRIMARY KEY (order_id, coupon_id)
);

ALTER TABLE orders
    ADD COLUMN coupon_fen        bigint NOT NULL DEFAULT 0 CHECK (coupon_fen >= 0),
    ADD COLUMN points_fen        bigint NOT NULL DEFAULT 0 CHECK (points_fen >= 0),
    ADD COLUMN freight_list_fen  bigint,                          -- without plan and coupon; NULL: not known
    ADD COLUMN points_campaigns  jsonb NOT NULL DEFAULT '[]',     -- which held at the time of order
    DROP CONSTRAINT orders_check,
    ADD CONSTRAINT orders_add_up CHECK (total_fen = goods_fen - coupon_fen - points_fen + freight_fen),
    ADD CONSTRAINT orders_discounts_within CHECK (coupon_fen + points_fen <= goods_fen),
    ADD CONSTRAINT orders_plans_without_discount CHECK (kind = 'goods' OR coupon_fen + points_fen = 0);

ALTER TABLE order_lines
    ADD COLUMN coupon_fen  bigint NOT NULL DEFAULT 0 CHECK (coupon_fen >= 0),
    ADD COLUMN points_fen  bigint NOT NULL DEFAULT 0 CHECK (points_fen >= 0),
    ADD COLUMN list_fen    bigint,                                -- of one unit, when ordered; NULL: not known
    ADD CONSTRAINT order_lines_discounts_within CHECK (coupon_fen + points_fen <= line_fen);

ALTER TABLE payments
    DROP CONSTRAINT payments_reason_check,
    ADD CONSTRAINT payments_reason_check CHECK (reason IN (
        'unknown_order', 'wrong_amount', 'second_payment', 'cancelled_before', 'no_stock',
        'limit_reached', 'discount_gone'));
