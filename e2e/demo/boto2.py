"""Says whose credentials boto 2 finds: the AWS SDK for Python of before 2015, which knows the metadata service as it was
first, without session tokens. Nothing here tells it where to look."""
import re
import sys

from boto.regioninfo import RegionInfo
from boto.sts.connection import STSConnection

host, port, region = sys.argv[1:]
sts = STSConnection(region=RegionInfo(name=region, endpoint=host), port=int(port), is_secure=False)
sts.auth_service_name, sts.auth_region_name = "sts", region  # which it reads off the host's name otherwise
answer = sts.make_request("GetCallerIdentity", {}, "/", "GET")
text = answer.read().decode()
arn = re.search("<Arn>(.*?)</Arn>", text)
print(arn.group(1) if arn else "%s %s" % (answer.status, " ".join(text.split())))
