-- Purpose: bound how often something is tried in a window of time.
-- KEYS[1]  the counter of one address or person
-- ARGV[1]  tries allowed in the window
-- ARGV[2]  the window in ms; it begins with the first try
-- ARGV[3]  'back' gives one try back (it was no guess)
-- Returns: tries so far · {'refused','rate_limited', ms until the window ends}
-- All or none: a refused try is not counted.
local tries = tonumber(redis.call('GET', KEYS[1]) or '0')
if ARGV[3] == 'back' then
  if tries > 0 then tries = redis.call('DECR', KEYS[1]) end
  return tries
end
if tries >= tonumber(ARGV[1]) then
  return {'refused', 'rate_limited', tostring(math.max(redis.call('PTTL', KEYS[1]), 1)), 'Too many tries; wait.'}
end
tries = redis.call('INCR', KEYS[1])
if tries == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return tries
