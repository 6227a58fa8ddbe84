-- Give a reborn show's open poll the ballots that were recorded. Who has voted anew meanwhile keeps that.
--
-- KEYS[8] ballots   hash: person -> {"c":[choices],"at":ms}
-- ARGV[1] id        of the poll
-- ARGV[2 …] pairs of person and ballot
-- Returns {'ok', taken}; refused: unavailable.
-- All or none.
local gone = guard()
if gone then return gone end
local state, taken = 'poll:' .. ARGV[1], 0
for index = 2, #ARGV, 2 do
  if redis.call('HSETNX', KEYS[8], ARGV[index], ARGV[index + 1]) == 1 then
    taken = taken + 1
    count(state, 'voters', 1)
    for _, choice in ipairs(cjson.decode(ARGV[index + 1]).c) do
      count(state, string.format('%.0f', choice), 1)
    end
  end
end
if taken > 0 then touch_state(state) end
return {'ok', taken}
