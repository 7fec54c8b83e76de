"""What Redis does in one step, in its own language."""

OVERHEAD_BYTES = 120
"""What Redis itself needs for a value, its name and its place in the accounts."""

_FORGET = """
local function forget(sizes, totals, bucket, field, size)
  redis.call('HDEL', sizes, field)
  redis.call('HINCRBY', totals, 'bytes', -size)
  redis.call('HINCRBY', totals, 'bytes:' .. bucket, -size)
  redis.call('HINCRBY', totals, 'entries', -1)
end
"""

KEEP = f"""
{_FORGET}
local name, sizes, totals = KEYS[1], KEYS[2], KEYS[3]
local value, lives_ms, field = ARGV[1], ARGV[2], ARGV[3]
local bucket_bytes, layer_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local prefix, bucket = ARGV[6], ARGV[7]
local size = #value + #field + {OVERHEAD_BYTES}

redis.call('SET', name, value, 'PX', lives_ms)
local before = tonumber(redis.call('HGET', sizes, field) or 0)
redis.call('HSET', sizes, field, size)
if before == 0 then redis.call('HINCRBY', totals, 'entries', 1) end
local all = redis.call('HINCRBY', totals, 'bytes', size - before)
local own = redis.call('HINCRBY', totals, 'bytes:' .. bucket, size - before)

-- Of some values the one that is used least: as Redis itself evicts. What expired goes for nothing.
local function uses(key)
  local often = redis.pcall('OBJECT', 'FREQ', key)
  if type(often) == 'number' then return often end
  local idle = redis.pcall('OBJECT', 'IDLETIME', key)
  if type(idle) == 'number' then return -idle end
  return nil
end

local rounds = 0
repeat
  local is_over = own > bucket_bytes or all > layer_bytes
  local sample = redis.call('HRANDFIELD', sizes, is_over and 8 or 2, 'WITHVALUES')
  local least, victim, victim_size = nil, nil, 0
  local gone = 0
  for i = 1, #sample, 2 do
    if sample[i] ~= field then
      local used = uses(prefix .. sample[i])
      local its = tonumber(sample[i + 1])
      if used == nil then
        forget(sizes, totals, bucket, sample[i], its)
        all, own, gone = all - its, own - its, gone + 1
      elseif least == nil or used < least then
        least, victim, victim_size = used, sample[i], its
      end
    end
  end
  if is_over and gone == 0 then
    if victim then
      redis.call('DEL', prefix .. victim)
      forget(sizes, totals, bucket, victim, victim_size)
      redis.call('HINCRBY', totals, 'evictions', 1)
      all, own = all - victim_size, own - victim_size
    elseif redis.call('HLEN', sizes) <= 1 then
      -- The accounts were evicted themselves: they begin again with what is known.
      if own > size then
        redis.call('HINCRBY', totals, 'bytes', size - own)
        redis.call('HSET', totals, 'bytes:' .. bucket, size)
      end
      break
    end
  end
  rounds = rounds + 1
until (own <= bucket_bytes and all <= layer_bytes) or rounds >= 64
return 1
"""
"""Keeps a value and accounts for it, and evicts of the same bucket what is too much."""

DROP = f"""
{_FORGET}
local sizes, totals = KEYS[1], KEYS[2]
local prefix, bucket, count = ARGV[1], ARGV[2], tonumber(ARGV[3])
local some = redis.call('HRANDFIELD', sizes, count, 'WITHVALUES')
for i = 1, #some, 2 do
  redis.call('DEL', prefix .. some[i])
  forget(sizes, totals, bucket, some[i], tonumber(some[i + 1]))
end
return #some / 2
"""
"""Forgets up to `count` values of a bucket; how many it were."""

TAKE = """
local value = redis.call('GET', KEYS[1])
if value then return {'known', value} end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return {'led', holder} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return {'ours', ARGV[1]}
"""
"""The value, or who leads the run that will give it; or else the lease to lead that run. Asked for a
second time, because the reply was not heard, it is the same lease."""

PUBLISH = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
for i = 4, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]) end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return redis.call('EXISTS', KEYS[3])
"""
"""Adds lines to a run and keeps its lease: -1 when somebody else has it, else whether anybody
in another process follows."""

FOLLOW = """
redis.call('SET', KEYS[3], 1, 'PX', ARGV[3])
local lines = redis.call('LRANGE', KEYS[2], ARGV[2], -1)
return {redis.call('GET', KEYS[1]) == ARGV[1] and 1 or 0, lines}
"""
"""Lines of a run from some place on, and whether its leader still leads; says that one follows."""

RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""
