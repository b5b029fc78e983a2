/** What webtorrent gets where it asks for WebRTC and uTP, which are native code: names without a value. */
module.exports = {
  RTCPeerConnection: undefined,
  RTCSessionDescription: undefined,
  RTCIceCandidate: undefined,
};
