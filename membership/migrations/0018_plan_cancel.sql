-- Cancelling a plan is for its end, and may be undone until then.
ALTER TABLE plan_terms ADD COLUMN cancelled_at timestamptz;
