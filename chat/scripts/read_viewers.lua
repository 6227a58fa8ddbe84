-- What the talk of a show knows of those who come in: until when each is muted, and what each has voted.
--
-- KEYS[8] mutes     hash: public id -> ms until which the viewer may not comment
-- KEYS[9] ballots   hash of the poll that is shown: person -> ballot
-- ARGV    pairs: public id, person; 500 at most
-- Returns {'ok', {until, ballot JSON or '', until, ballot, …}}: ms, 0 when not muted; refused: unavailable.
-- All or none: reads only.
local gone = guard()
if gone then return gone end
local public, people, found = {}, {}, {}
for i = 1, #ARGV, 2 do
  public[#public + 1], people[#people + 1] = ARGV[i], ARGV[i + 1]
end
local mutes, ballots = redis.call('HMGET', KEYS[8], unpack(public)), redis.call('HMGET', KEYS[9], unpack(people))
for i = 1, #public do
  local until_ms = tonumber(mutes[i] or '0')
  found[#found + 1] = until_ms > NOW and string.format('%.0f', until_ms) or '0'
  found[#found + 1] = ballots[i] or ''
end
return {'ok', found}
