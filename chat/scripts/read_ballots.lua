-- One page of a closed poll's ballots. A ballot may come twice, none is left out: the hash no longer changes.
--
-- KEYS[8] ballots   hash: person -> {"c":[choices],"at":ms}
-- ARGV[1] cursor    '0' to begin
-- ARGV[2] about     how many a page
-- Returns {'ok', cursor, {person, ballot, …}}; the cursor is '0' after the last page; refused: unavailable.
-- All or none: reads only.
local gone = guard()
if gone then return gone end
local page = redis.call('HSCAN', KEYS[8], ARGV[1], 'COUNT', ARGV[2])
return {'ok', page[1], page[2]}
