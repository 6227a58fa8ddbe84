-- What can be sold, and at which price to whom.

CREATE TABLE products (
    id                     uuid PRIMARY KEY,
    sku                    text NOT NULL UNIQUE CHECK (char_length(sku) BETWEEN 1 AND 64),
    name                   text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 60),
    short                  text NOT NULL DEFAULT '' CHECK (char_length(short) <= 120),
    unit                   text NOT NULL DEFAULT '件' CHECK (char_length(unit) BETWEEN 1 AND 20),
    image                  text CHECK (char_length(image) <= 500),
    list_fen               bigint NOT NULL CHECK (list_fen BETWEEN 1 AND 100000000),
    member_fen             bigint CHECK (member_fen BETWEEN 1 AND list_fen),
    member_price_audience  jsonb NOT NULL DEFAULT '{}',  -- who may see the member price; {} is everyone
    stock                  integer NOT NULL CHECK (stock BETWEEN 0 AND 10000000),  -- free pieces: holds are already taken off
    stock_mode             text NOT NULL DEFAULT 'on_order' CHECK (stock_mode IN ('on_order')),
    audience               jsonb NOT NULL DEFAULT '{}',  -- who may know of it at all
    on_sale_at             timestamptz,                  -- not ordered before, but for the early audience
    early_s                integer NOT NULL DEFAULT 0 CHECK (early_s BETWEEN 0 AND 2592000),
    early_audience         jsonb NOT NULL DEFAULT '{"kind":"plan_members"}',
    no_promo               boolean NOT NULL DEFAULT false,
    no_behaviour_tags      boolean NOT NULL DEFAULT false,  -- sensitive: no tag is drawn from behaviour
    tag_name               text CHECK (char_length(tag_name) BETWEEN 1 AND 40),
    gift_text              text CHECK (char_length(gift_text) BETWEEN 1 AND 80),
    gift_value_fen         bigint NOT NULL DEFAULT 0 CHECK (gift_value_fen BETWEEN 0 AND 100000000),
    gift_audience          jsonb NOT NULL DEFAULT '{"kind":"plan_members"}',  -- who gets the gift
    status                 text NOT NULL DEFAULT 'on' CHECK (status IN ('on', 'off')),
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now(),
    CHECK (gift_text IS NOT NULL OR gift_value_fen = 0),
    CHECK (early_s = 0 OR on_sale_at IS NOT NULL)
);

-- Prices for a product, for an audience, from–until. The lowest that holds wins; none can raise a price.
CREATE TABLE price_entries (
    id          uuid PRIMARY KEY,
    product_id  uuid NOT NULL REFERENCES products (id),
    audience    jsonb NOT NULL DEFAULT '{}',
    unit_fen    bigint NOT NULL CHECK (unit_fen BETWEEN 1 AND 100000000),
    from_at     timestamptz NOT NULL,
    until_at    timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CHECK (until_at > from_at)
);
CREATE INDEX price_entries_of_product ON price_entries (product_id, from_at);
