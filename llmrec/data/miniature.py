def ensure_world(): raise NotImplementedError
def world_checksum(): return "x"*12
