// Package sim lets two hundred agents of one site live through a bad hour in a few seconds: the real
// substituter, on a virtual clock, over a network in memory whose machines come and go, whose links part,
// whose central cache fails, and some of whose agents lie. Peers' transport and standing are the
// simulation's own: convicted peers are out, flaky ones rest; package p2p tests the real ones.
//
// A seed decides all that happens to the agents and when; the order of goroutines at one instant is Go's.
package sim
