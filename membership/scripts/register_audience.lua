-- Purpose: give an audience its bit within the show, once.
-- KEYS: the spine (prelude).
-- ARGV: 1 audience as canonical JSON; 2 how many a show may have beside everyone and plan members.
-- Returns: {'ok', offset from the first own bit}, -1 when the show is full.
-- All or none: a refused audience leaves the list as it was.
local gone = guard()
if gone then return gone end
local list = cjson.decode(redis.call('HGET', META, 'audiences') or '[]')
for i, seen in ipairs(list) do
  if seen == ARGV[1] then return {'ok', i - 1} end
end
if #list >= tonumber(ARGV[2]) then return {'ok', -1} end
list[#list + 1] = ARGV[1]
redis.call('HSET', META, 'audiences', cjson.encode(list))
touch_state('audiences')
return {'ok', #list - 1}
