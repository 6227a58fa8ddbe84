-- A closed benefit is tended until nothing of it is left to write, to tell or to take back. That is noted here;
-- before, every closed one was looked at each second for an hour, and shows closed lately waited behind them.

ALTER TABLE benefits
    ADD COLUMN settled_at timestamptz,
    ADD CONSTRAINT benefits_settled_once_closed CHECK (settled_at IS NULL OR status = 'closed');
UPDATE benefits b SET settled_at = closed_at
WHERE closed_at < now() - interval '1 hour'
  AND NOT EXISTS (SELECT 1 FROM benefit_claims c WHERE c.benefit_id = b.id AND c.announced_at IS NULL);
CREATE INDEX benefits_by_settling ON benefits (settled_at);

-- New terms, or counters built anew, are put in force by tending.
CREATE FUNCTION benefit_unsettled() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.settled_at := NULL;
    RETURN NEW;
END
$$;
CREATE TRIGGER benefits_tended_again BEFORE UPDATE OF version, generation ON benefits
    FOR EACH ROW WHEN (NEW.version <> OLD.version OR NEW.generation <> OLD.generation)
    EXECUTE FUNCTION benefit_unsettled();
