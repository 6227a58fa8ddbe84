-- A line of a price list may ask for so many of the product in one order.
ALTER TABLE price_entries
    ADD COLUMN min_quantity integer NOT NULL DEFAULT 1 CHECK (min_quantity BETWEEN 1 AND 99);
