// The AWS SDK for JavaScript, version 3.
const { STSClient, GetCallerIdentityCommand } = require('@aws-sdk/client-sts');
const { MetadataService } = require('@aws-sdk/ec2-metadata-service');
const talk = require('./talk.js');

const [endpoint, region] = process.argv.slice(2);
const client = new STSClient({ endpoint, region });
const metadata = new MetadataService();
const get = (path) => metadata.request('/latest/meta-data/' + path, {});

talk({
  version: require('@aws-sdk/client-sts/package.json').version,
  async identity() {
    const { accessKeyId } = await client.config.credentials();
    const { Arn } = await client.send(new GetCallerIdentityCommand({}));
    return { key: accessKeyId, arn: Arn };
  },
  forget: () => client.config.credentials({ forceRefresh: true }),
  region: () => get('placement/region'),
  get,
});
