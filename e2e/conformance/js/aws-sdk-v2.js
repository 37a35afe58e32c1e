// The AWS SDK for JavaScript, version 2, used in the way that all its releases understand.
process.env.AWS_SDK_JS_SUPPRESS_MAINTENANCE_MODE_MESSAGE = '1';
const AWS = require('aws-sdk');
const talk = require('./talk.js');

const [endpoint, region] = process.argv.slice(2);

// GetCallerIdentity is younger than the first of the releases, so the model of STS is our own.
const model = {
  version: '2.0',
  metadata: {
    apiVersion: '2011-06-15', endpointPrefix: 'sts', protocol: 'query', serviceFullName: 'AWS Security Token Service',
    serviceAbbreviation: 'STS', signatureVersion: 'v4', uid: 'sts-2011-06-15', xmlNamespace: 'https://sts.amazonaws.com/doc/2011-06-15/',
  },
  operations: {
    GetCallerIdentity: {
      input: { type: 'structure', members: {} },
      output: { resultWrapper: 'GetCallerIdentityResult', type: 'structure', members: { Arn: {} } },
    },
  },
};
const promise = (start) => new Promise((resolve, reject) => start((err, data) => (err ? reject(err) : resolve(data))));
const metadata = (path) => promise((done) => new AWS.MetadataService().request('/latest/meta-data/' + path, done));

talk({
  version: AWS.VERSION,
  async identity() {
    await promise((done) => AWS.config.getCredentials(done));
    const sts = new AWS.Service({ apiConfig: model, endpoint, region });
    const { Arn } = await promise((done) => sts.makeRequest('getCallerIdentity', {}, done));
    return { key: AWS.config.credentials.accessKeyId, arn: Arn };
  },
  async forget() {
    if (AWS.config.credentials) AWS.config.credentials.expired = true;
  },
  // It has no finder of regions; this is what its users write.
  region: async () => (await metadata('placement/availability-zone')).slice(0, -1),
  get: metadata,
});
