-- Post one comment: pace, mute and the show's status decided and the line appended in one step.
--
-- KEYS[8] mutes     hash: public id -> ms until which the viewer may not comment
-- KEYS[9] hidden    set: seqs of hidden comments (a hidden one is not replied to)
-- KEYS[10] pace     hash: ten-second slot -> comments posted in it
-- KEYS[11] recent   list of this person: ms of the last comments, oldest first
-- KEYS[12] paused   there while this person is silenced for going too fast
-- KEYS[13] buyers   set: members who paid for something in this show
-- ARGV[1] who       the person's id; answers are recorded by who:key
-- ARGV[2] key       '' when the command has none
-- ARGV[3] digest    of the command's body
-- ARGV[4] public    the person's public id
-- ARGV[5] kind      'staff' (no pace, no mute), 'member' or 'guest' (only where the show lets guests speak)
-- ARGV[6] event     comment.posted as JSON
-- ARGV[7] reply_to  seq of the comment answered, or ''
-- ARGV[8] record    behaviour record as JSON, or ''
-- ARGV[9] burst     comments allowed in one window (3)
-- ARGV[10] window   ms (2000)
-- ARGV[11] pause    ms of silence for the one comment too many (10000)
-- ARGV[12] rank     in sampling when no buyer: 2 plan member, 3 registered, 4 guest; '' is never sampled
-- Returns {'ok', '{"seq":…,"at":…}'}; refused: unavailable, key_reused, not_live, unauthenticated, not_found
-- (reply_to), muted, rate_limited (both with retry_ms).
-- All or none: a refused comment changes nothing but the pause it starts.
local gone = whole_guard()
if gone then return gone end
local MUTES, HIDDEN, PACE, RECENT, PAUSED = KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local who, key, digest, public, kind, event, reply_to =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local burst, window, pause = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local now_text = string.format('%.0f', NOW)

local again = recall(who, key, digest)
if again then return again end

local current = status()
if current == 'scheduled' or current == 'ended' then return refused('not_live') end
if kind == 'guest' and redis.call('HGET', META, 'guest_comments') ~= '1' then
  return refused('unauthenticated')
end

if reply_to ~= '' then
  local entry = redis.call('XRANGE', LOG, reply_to .. '-0', reply_to .. '-0')[1]
  local found = entry and entry[2][2] ~= '' and cjson.decode(entry[2][2])
  if not found or found.type ~= 'comment.posted' or redis.call('SISMEMBER', HIDDEN, reply_to) == 1 then
    return refused('not_found')
  end
  event = string.sub(event, 1, -2) .. ',"reply_name":' .. cjson.encode(found.name) .. '}'
end

if kind ~= 'staff' then
  local muted = tonumber(redis.call('HGET', MUTES, public) or '0')
  if muted > NOW then return refused('muted', muted - NOW) end
  local silent = redis.call('PTTL', PAUSED)
  if silent > 0 then return refused('rate_limited', silent) end
  if redis.call('LLEN', RECENT) >= burst and NOW - tonumber(redis.call('LINDEX', RECENT, 0)) < window then
    redis.call('DEL', RECENT) -- after the pause the window begins anew
    redis.call('SET', PAUSED, '1', 'PX', pause)
    return refused('rate_limited', pause)
  end
  redis.call('RPUSH', RECENT, now_text)
  redis.call('LTRIM', RECENT, -burst, -1)
  redis.call('PEXPIRE', RECENT, window)
end

local rank = tonumber(ARGV[12])
if rank and redis.call('SISMEMBER', KEYS[13], who) == 1 then rank = 1 end
local seq = append(0, event, false, nil, rank)
redis.call('HINCRBY', PACE, string.format('%.0f', math.floor(NOW / 10000)), 1)
behave(ARGV[8])
local reply = '{"seq":' .. seq .. ',"at":' .. now_text .. '}'
remember(who, key, digest, reply)
return {'ok', reply}
