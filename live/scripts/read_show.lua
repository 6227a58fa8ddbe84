-- Where a show stands in Redis.
--
-- KEYS  the spine (prelude)
-- Returns {'ok', ms since its rebuild began ('' when it is whole), status, most viewers at once, viewers now};
-- refused: unavailable.
-- All or none: reads only.
local gone = guard()
if gone then return gone end
local meta = redis.call('HMGET', META, 'rebuilding', 'status', 'viewers_peak')
local age = meta[1] and string.format('%.0f', math.max(0, NOW - tonumber(meta[1]))) or ''
return {'ok', age, meta[2] or '', meta[3] or '0', string.format('%.0f', get_count('presence', 'viewers'))}
