-- Purpose: check a sign-in code. A right one is used up; so is one that was tried too often.
-- KEYS[1] code    hash: digest, tries
-- ARGV[1] digest of what was typed · [2] tries allowed
-- Returns {'ok', 1} · {'wrong', tries left} · {'expired'} (never issued, too old, used, or tried too often).
-- All or none: each call counts one try, also when many come at once.
assert(#KEYS == 1 and #ARGV == 2)
local digest = redis.call('HGET', KEYS[1], 'digest')
if not digest then return {'expired'} end
if digest == ARGV[1] then
  redis.call('DEL', KEYS[1])
  return {'ok', 1}
end
local left = tonumber(ARGV[2]) - redis.call('HINCRBY', KEYS[1], 'tries', 1)
if left <= 0 then redis.call('DEL', KEYS[1]) end
return {'wrong', left}
