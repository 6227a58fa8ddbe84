-- Polls and their ballots. While a poll is open Redis decides; what is here lasts beyond the show.
-- Show ids are not foreign keys: the shows' table belongs to a room above this one.

CREATE TABLE polls (
    id           uuid PRIMARY KEY,
    show_id      text NOT NULL,
    question     text NOT NULL,
    choices      jsonb NOT NULL,                  -- ["加红枣", "加山药"], in the order shown
    max_choices  smallint NOT NULL CHECK (max_choices >= 1),
    results      text NOT NULL CHECK (results IN ('after_vote', 'after_close', 'always')),
    audience     jsonb NOT NULL,
    opened_by    text NOT NULL,
    opened_at    timestamptz NOT NULL DEFAULT now(),
    closes_at    timestamptz,                     -- no ballot counts from here on
    closed_at    timestamptz,
    voters       integer,                         -- both set when closed
    tally        integer[],
    CHECK ((closed_at IS NULL) = (voters IS NULL AND tally IS NULL))
);

-- One open poll a show.
CREATE UNIQUE INDEX polls_one_open ON polls (show_id) WHERE closed_at IS NULL;
CREATE INDEX polls_by_show ON polls (show_id, opened_at);

-- Written when the poll closes. A person is a member's id, else a guest's.
CREATE TABLE ballots (
    poll_id   uuid NOT NULL REFERENCES polls (id),
    person    text NOT NULL,
    member_id uuid,
    choices   smallint[] NOT NULL,
    cast_at   timestamptz NOT NULL,
    PRIMARY KEY (poll_id, person)
);
CREATE INDEX ballots_by_member ON ballots (member_id) WHERE member_id IS NOT NULL;

