-- A hold is prolonged once in its life; the mark outlives the counters in Redis.
ALTER TABLE benefit_seats ADD COLUMN prolonged boolean NOT NULL DEFAULT false;
